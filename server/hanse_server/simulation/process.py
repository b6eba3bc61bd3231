"""The engine that runs sites in worker processes, which stay up and keep their sites warm."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from flwr.app import Error as FlowerError
from flwr.app import Message
from hanse.flower import APP_CRASHED

from hanse_server.simulation import worker


@dataclass(eq=False)
class Call:
    """What one caller wants done.

    Attributes:
        queues: what waits for each worker, by its number.
        replies: what is ready and not yet taken.
        under_way: messages that workers execute now.
        closed: whether the caller takes nothing more.
    """

    queues: list[deque[Message]]
    replies: deque[Message] = field(default_factory=deque)
    under_way: int = 0
    closed: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return not (self.under_way or self.replies or any(self.queues))


@dataclass
class Worker:
    """A worker process, and what it executes now, for whom."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    busy_with: tuple[Message, Call] | None = None


class ProcessEngine:
    """Persistent workers; each site always goes to the same one.

    Args:
        client_app: ``module:factory`` that makes the ClientApp in each worker.
        described: the factory's argument.
        sites: node id -> name.
        workers: processes; one a core if None.
    """

    def __init__(
        self,
        client_app: str,
        described: str,
        sites: Mapping[int, str],
        *,
        workers: int | None = None,
    ) -> None:
        self._sites = sites
        self._client_app = client_app
        self._described = described
        count = min(workers or os.cpu_count() or 1, len(sites))
        self._threads = max(1, (os.cpu_count() or 1) // count)
        # A fresh interpreter: a fork would inherit torch's threads in whatever state they are.
        self._spawn = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(count)]
        self._calls: list[Call] = []
        self._home = {node: rank % count for rank, node in enumerate(sorted(sites))}

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the reply to each message as its worker has it ready.

        A worker that dies answers what it was at with an error, and is started anew. Several
        calls may be open: who is asked for a reply goes first, and for the others no more is done
        ahead than there are workers. Who closes the iterator leaves undone what is not begun.
        """
        call = Call([deque() for _ in self._workers])
        for message in messages:
            call.queues[self._home[message.metadata.dst_node_id]].append(message)
        self._calls.append(call)
        try:
            while not call.done:
                while not call.replies:
                    self._feed(call)
                    self._await()
                yield call.replies.popleft()
        finally:
            self._calls.remove(call)
            call.closed = True

    def close(self) -> None:
        """End the workers."""
        for each in self._workers:
            each.connection.close()
        for each in self._workers:
            each.process.join(timeout=5)
            if each.process.is_alive():
                each.process.kill()

    def _start(self) -> Worker:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(
            target=worker.serve,
            args=(theirs, self._client_app, self._described, self._threads),
            daemon=True,
        )
        process.start()
        theirs.close()
        return Worker(process, ours)

    def _feed(self, first: Call) -> None:
        """Give every worker that is idle something to do."""
        ahead = [call for call in self._calls if len(call.replies) < len(self._workers)]
        for rank, each in enumerate(self._workers):
            if each.busy_with is not None:
                continue
            call = next((call for call in (first, *ahead) if call.queues[rank]), None)
            if call is not None:
                message = call.queues[rank].popleft()
                each.busy_with = message, call
                call.under_way += 1
                worker.send(each.connection, message, self._sites[message.metadata.dst_node_id])

    def _await(self) -> None:
        """Wait until a worker is ready; its reply goes to whom it is for."""
        busy = [each for each in self._workers if each.busy_with is not None]
        ready = wait([each.connection for each in busy])
        for each in busy:
            if each.connection in ready and each.busy_with is not None:
                _, call = each.busy_with
                reply = self._collect(each)
                call.under_way -= 1
                if not call.closed:
                    call.replies.append(reply)

    def _collect(self, each: Worker) -> Message:
        if each.busy_with is None:
            raise RuntimeError("a worker answered without having been asked")
        message, _ = each.busy_with
        each.busy_with = None
        try:
            return worker.receive(each.connection)[0]
        except (EOFError, ConnectionResetError):
            each.process.join()
            fresh = self._start()
            each.process, each.connection = fresh.process, fresh.connection
            return Message(FlowerError(APP_CRASHED, "worker_died"), reply_to=message)

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


@dataclass
class Worker:
    """A worker process, and what it was given to do.

    Attributes:
        busy_with: the message that it executes now.
        queue: those that wait for it.
    """

    process: multiprocessing.process.BaseProcess
    connection: Connection
    busy_with: Message | None = None
    queue: deque[Message] = field(default_factory=deque)


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
        self._home = {node: rank % count for rank, node in enumerate(sorted(sites))}

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the reply to each message as its worker has it ready.

        A worker that dies answers what it was at with an error, and is started anew.
        """
        for message in messages:
            self._workers[self._home[message.metadata.dst_node_id]].queue.append(message)
        for each in self._workers:
            self._next(each)
        while busy := [each for each in self._workers if each.busy_with is not None]:
            ready = wait([each.connection for each in busy])
            for each in busy:
                if each.connection in ready:
                    yield self._collect(each)
                    self._next(each)

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

    def _next(self, each: Worker) -> None:
        if each.busy_with is None and each.queue:
            each.busy_with = each.queue.popleft()
            site = self._sites[each.busy_with.metadata.dst_node_id]
            worker.send(each.connection, each.busy_with, site)

    def _collect(self, each: Worker) -> Message:
        message = each.busy_with
        if message is None:
            raise RuntimeError("a worker answered without having been asked")
        each.busy_with = None
        try:
            return worker.receive(each.connection)[0]
        except (EOFError, ConnectionResetError):
            each.process.join()
            fresh = self._start()
            each.process, each.connection = fresh.process, fresh.connection
            return Message(FlowerError(APP_CRASHED, "worker_died"), reply_to=message)

"""The engine that runs sites in worker processes, which stay up and keep their sites warm."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait

import torch
from flwr.app import Error as FlowerError
from flwr.app import Message
from hanse.flower import APP_CRASHED

from hanse_server.simulation.queues import QueueEngine
from hanse_server.simulation.worker import Pipe, serve


@dataclass
class Worker:
    """A worker process, and our end of the pipe to it."""

    process: multiprocessing.process.BaseProcess
    pipe: Pipe


class ProcessEngine(QueueEngine):
    """Persistent workers; each site always goes to the same one.

    Where there are several GPUs, each worker sees one of them, in turn. A worker that dies answers
    what it was at with an error, and is started anew.

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
        count = min(workers or os.cpu_count() or 1, len(sites))
        super().__init__(sites, count)
        self._sites = sites
        self._client_app = client_app
        self._described = described
        self._threads = max(1, (os.cpu_count() or 1) // count)
        # A fresh interpreter: a fork would inherit torch's threads in whatever state they are.
        self._spawn = multiprocessing.get_context("spawn")
        self._workers = [self._start(rank) for rank in range(count)]

    def close(self) -> None:
        """End the workers."""
        for each in self._workers:
            each.pipe.connection.close()
        for each in self._workers:
            each.process.join(timeout=5)
            if each.process.is_alive():
                each.process.kill()

    def _start(self, rank: int) -> Worker:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(
            target=serve,
            args=(theirs, self._client_app, self._described, self._threads, _gpu_of(rank)),
            daemon=True,
        )
        process.start()
        theirs.close()
        return Worker(process, Pipe(ours))

    def _begin(self, rank: int, message: Message) -> None:
        site = self._sites[message.metadata.dst_node_id]
        with suppress(BrokenPipeError, ConnectionResetError):  # its end is found when it is awaited
            self._workers[rank].pipe.send(message, site)

    def _replies(self, at_work: Mapping[int, Message]) -> Mapping[int, Message]:
        ready = wait([self._workers[rank].pipe.connection for rank in at_work])
        return {
            rank: self._reply(rank, message)
            for rank, message in at_work.items()
            if self._workers[rank].pipe.connection in ready
        }

    def _reply(self, rank: int, message: Message) -> Message:
        try:
            return self._collect(self._workers[rank])
        except (EOFError, ConnectionResetError):
            self._workers[rank].process.join()
            self._workers[rank] = self._start(rank)
            return Message(FlowerError(APP_CRASHED, "worker_died"), reply_to=message)

    def _collect(self, each: Worker) -> Message:
        return each.pipe.receive()[0]


def _gpu_of(rank: int) -> str | None:
    """The GPU of a worker, as CUDA names it; None where there is no choice."""
    count = torch.cuda.device_count()
    if count < 2:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names[rank % count]

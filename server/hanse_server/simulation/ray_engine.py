"""The engine that runs sites on a Ray cluster: one machine or many, some of which may be lost."""

from __future__ import annotations

import importlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.app import Error as FlowerError
from hanse.errors import HanseError, ProcessError
from hanse.flower import APP_CRASHED, answer, quiet_flower
from hanse.simulation import LEDGER
from hanse.wire.content import arrays_of
from hanse.wire.message import Encoded, encode

from hanse_server.simulation.cluster import RayCluster, connect, room_in
from hanse_server.simulation.frames import (
    body_of,
    header_of,
    pack,
    pack_state,
    unpack,
    unpack_state,
)
from hanse_server.simulation.grid import context_of
from hanse_server.simulation.queues import QueueEngine

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger("hanse.simulation")

MOST_EXECUTIONS = 3
"""Workers that may die over one message before it is answered as what kills them."""

CONTENTS_KEPT = 4
"""Contents whose arrays stay in Ray's object store: the newest, as a round's model is."""

PATIENCE_SECONDS = 30.0
"""After which it is told that workers wait for a place in the cluster."""


@dataclass(frozen=True)
class Worker:
    """A worker, and a reference to the id of the machine on which it has its place."""

    actor: Any
    placed: Any


class SiteWorker:
    """A Ray actor: makes the ClientApp once, and keeps its sites warm.

    Args:
        client_app: ``module:factory``.
        described: the factory's argument.
        threads: of torch.
    """

    def __init__(self, client_app: str, described: str, threads: int) -> None:
        quiet_flower()
        torch.set_num_threads(threads)
        module, _, factory = client_app.partition(":")
        self._app = getattr(importlib.import_module(module), factory)(described)

    def ready(self) -> str:
        """The id of the machine, once the worker has its place and the app is made."""
        ray = importlib.import_module("ray")  # there is one where this runs
        return str(ray.get_runtime_context().get_node_id())

    def answer(
        self, header: bytes, body: bytes, state: bytes, site: str
    ) -> tuple[bytes, bytes, bytes]:
        """The reply's header and body, and the state in which the site is afterwards."""
        message = unpack(header, body)
        context = context_of(message, site)
        context.state = unpack_state(state)
        reply = answer(lambda each: self._app(each, context), message)
        return (*pack(reply), pack_state(context.state))


class RayEngine(QueueEngine):
    """Actors on a Ray cluster; each site always goes to the same one.

    Where each actor runs is for Ray to decide. A model goes into Ray's object store once, however
    many sites it is for, and from there to each machine once. When an actor dies, alone or with
    its machine, another is started and executes the message again. That charges nothing twice and
    forgets nothing: the state of a site, with its ledger, comes back with each reply and goes out
    with the next message, so that who executes a message again begins where the last reply ended.

    Args:
        client_app: ``module:factory`` that makes the ClientApp in each worker.
        described: the factory's argument; files that it names must be on every machine.
        sites: node id -> name.
        cluster: where they run.
        workers: how many; if None, one for each CPU of the cluster, or, with GPUs, as many as
            these have room for.

    Raises:
        MissingExtraError: if Ray is not installed.
        UnreachableError: if there is no cluster at the address.
        JobError: if the cluster lacks the GPUs.
        ProcessError: if a worker cannot make its app.
    """

    def __init__(
        self,
        client_app: str,
        described: str,
        sites: Mapping[int, str],
        cluster: RayCluster,
        *,
        workers: int | None = None,
    ) -> None:
        self._ray = connect(cluster.address)
        try:
            cores, count = room_in(self._ray.cluster_resources(), cluster.gpus, workers, len(sites))
            super().__init__(sites, count)
            self._sites = sites
            self._arguments = client_app, described, max(1, cores // count)
            # Without GPUs, nothing is named: then Ray asks for a CPU to place an actor and for none
            # to keep it, so that what is left of a cluster has always room for all of them.
            needs = {"num_cpus": 0, "num_gpus": cluster.gpus} if cluster.gpus else {}
            kind = self._ray.remote(SiteWorker)
            self._kind = kind.options(scheduling_strategy="SPREAD", **needs)
            self._workers = [self._start() for _ in range(count)]
            self._await_workers()
        except HanseError:
            self._ray.shutdown()
            raise
        self._at_work: dict[int, tuple[list[Any], int]] = {}  # references, executions so far
        fresh = pack_state(RecordDict({LEDGER: ConfigRecord()}))
        self._states = dict.fromkeys(sites, fresh)
        self._encoded: OrderedDict[int, tuple[RecordDict, Encoded]] = OrderedDict()
        self._stored: OrderedDict[tuple[int, ...], tuple[list[Array], Any]] = OrderedDict()

    def close(self) -> None:
        """End the workers, and a cluster that was started for them."""
        for each in self._workers:
            self._ray.kill(each.actor)
        self._ray.shutdown()

    def _start(self) -> Worker:
        actor = self._kind.remote(*self._arguments)
        return Worker(actor, actor.ready.remote())

    def _await_workers(self) -> None:
        """Wait until all workers have their places and their apps.

        Raises:
            ProcessError: if one of them cannot make its app.
        """
        placed = [each.placed for each in self._workers]
        while len(self._ray.wait(placed, num_returns=len(placed), timeout=PATIENCE_SECONDS)[1]):
            self._tell_who_waits()
        try:
            self._ray.get(placed)
        except self._ray.exceptions.RayError as failure:
            raise ProcessError(
                f"a worker of the Ray cluster could not start: {str(failure).splitlines()[-1]}",
                remedy="Install the same hanse on every machine, with the data at the same path.",
            ) from failure

    def _begin(self, rank: int, message: Message) -> None:
        self._submit(rank, message, executions=1)

    def _submit(self, rank: int, message: Message, *, executions: int) -> None:
        node = message.metadata.dst_node_id
        encoded = self._encode(message.content)
        work = self._workers[rank].actor.answer.options(num_returns=3)
        references = work.remote(
            header_of(encoded, message),
            self._body(message.content, encoded),
            self._states[node],
            self._sites[node],
        )
        self._at_work[rank] = references, executions

    def _replies(self, at_work: Mapping[int, Message]) -> Mapping[int, Message]:
        replies: dict[int, Message] = {}
        while not replies:
            headers = {self._at_work[rank][0][0]: rank for rank in at_work}
            done, _ = self._ray.wait(list(headers), num_returns=1, timeout=PATIENCE_SECONDS)
            if not done:
                self._tell_who_waits()
            for rank in (headers[reference] for reference in done):
                reply = self._reply(rank, at_work[rank])
                if reply is not None:
                    replies[rank] = reply
        return replies

    def _reply(self, rank: int, message: Message) -> Message | None:
        """The reply of a worker that is done; None if it is gone, and another begins anew."""
        references, executions = self._at_work.pop(rank)
        lost = self._ray.exceptions
        try:
            header, body, state = self._ray.get(references)
        except (lost.RayActorError, lost.ObjectLostError, lost.OutOfMemoryError) as gone:
            log.warning("a worker of the Ray cluster is gone: %s", type(gone).__name__)
            self._ray.kill(self._workers[rank].actor)  # out of reach or dead: it answers no more
            self._workers[rank] = self._start()
            if executions == MOST_EXECUTIONS:
                return Message(FlowerError(APP_CRASHED, "worker_died"), reply_to=message)
            self._submit(rank, message, executions=executions + 1)
            return None
        self._states[message.metadata.dst_node_id] = state
        return unpack(header, body)

    def _tell_who_waits(self) -> None:
        """Warn of workers that have no place, if there are any: no reply comes from these."""
        placed = [each.placed for each in self._workers]
        _, waiting = self._ray.wait(placed, num_returns=len(placed), timeout=0)
        if waiting:
            has = self._ray.cluster_resources()
            log.warning(
                "%d of %d workers wait for a place in the Ray cluster, with its %g CPUs, %g GPUs",
                *(len(waiting), len(placed), has.get("CPU", 0), has.get("GPU", 0)),
            )

    def _encode(self, content: RecordDict) -> Encoded:
        """A content as it travels; one that many messages share is encoded once."""
        known = self._encoded.pop(id(content), None) or (content, encode(content))
        _keep(self._encoded, id(content), known)
        return known[1]

    def _body(self, content: RecordDict, encoded: Encoded) -> Any:
        """A reference to the arrays of a content; they are stored once, whatever else it says."""
        arrays = list(arrays_of(content))
        key = tuple(map(id, arrays))  # as long as an object lives, no other has its id()
        known = self._stored.pop(key, None) or (arrays, self._ray.put(body_of(encoded)))
        _keep(self._stored, key, known)
        return known[1]


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    """Keep a value as the newest of a few."""
    kept[key] = value
    while len(kept) > CONTENTS_KEPT:
        kept.popitem(last=False)

"""Grids that drive the same ClientApp without a network."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from hanse.identity import node_id_of
from hanse.job import Job
from hanse.simulation import CLIENT_APP, COHORT_APP, SimulatedSites

from hanse_server.app import make_server_app, run_app
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import OnRound
from hanse_server.simulation.cluster import RayCluster
from hanse_server.simulation.grid import Engine, LocalGrid
from hanse_server.simulation.inline import InlineEngine
from hanse_server.simulation.process import ProcessEngine
from hanse_server.simulation.ray_engine import RayEngine
from hanse_server.simulation.vectorised import VectorisedEngine
from hanse_server.workspace import Workspace

EngineName = Literal["auto", "inline", "vectorised", "process", "ray"]


def simulate(
    job: Job,
    sites: SimulatedSites,
    workspace: Workspace,
    metrics: ServerMetrics,
    *,
    engine: EngineName = "inline",
    workers: int | None = None,
    cluster: RayCluster | None = None,
    on_round: OnRound = lambda record: None,
) -> None:
    """Run ``job`` on simulated sites, with the ServerApp and the ClientApp of a real federation.

    Args:
        engine: ``inline``, one site after the other in this process; ``vectorised``, sites of a
            round at once in this process, where the model allows it; ``process``, one after the
            other in each of several processes; ``ray``; or ``auto``: ``vectorised``, but
            ``inline`` where a round closes before all have answered, so that nobody trains in
            vain.
        workers: of the engines that have any; one a core if None.
        cluster: of the ``ray`` engine; None starts one here.
        on_round: told of each round once it is durable.

    Raises:
        HanseError: as a run on real sites does.
    """
    if engine == "auto":
        engine = "inline" if job.strategy.goal else "vectorised"
    with _engine(engine, sites, workers, cluster or RayCluster()) as driving:
        grid = LocalGrid(workspace.run_id, sites.names, driving)
        run_app(make_server_app(job, workspace, metrics, on_round), grid)


@contextmanager
def _engine(
    name: EngineName, sites: SimulatedSites, workers: int | None, cluster: RayCluster
) -> Iterator[Engine]:
    names = {node_id_of(site): site for site in sites.names}
    described = sites.model_dump_json()
    engine: Engine
    if name == "inline":
        engine = InlineEngine(_made(CLIENT_APP, described), names)
    elif name == "vectorised":
        engine = VectorisedEngine(_made(COHORT_APP, described), names)
    elif name == "ray":
        engine = RayEngine(CLIENT_APP, described, names, cluster, workers=workers)
    else:
        engine = ProcessEngine(CLIENT_APP, described, names, workers=workers)
    try:
        yield engine
    finally:
        engine.close()


def _made(factory: str, described: str) -> Any:
    """What ``module:factory`` makes of the sites."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(described)

"""What `hanse simulate` does: sites laid out, the job run, progress shown."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from hanse.errors import JobError, WorkspaceError
from hanse.job import Job
from hanse.logs import to_stderr
from hanse.metrics import new_registry
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hanse_server.history import RoundRecord
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import OnRound
from hanse_server.simulation import EngineName, simulate
from hanse_server.simulation.cluster import RayCluster
from hanse_server.simulation.sites import lay_out
from hanse_server.workspace import Workspace, make_folder

log = logging.getLogger("hanse.simulation")

PACE = 10.0
"""Seconds between checkpoints: no site waits for them, and a simulation always begins anew."""


@dataclass(frozen=True, kw_only=True)
class SimulationRequest:
    """How a job is to be simulated; see `hanse simulate --help`."""

    data: Path | None
    sites: int
    partition: str
    engine: str = "auto"
    workers: int | None = None
    ray: RayCluster | None = None
    holdout_seed: int | None = None
    waived: bool = False
    overwrite: bool = False
    progress: bool = False


def run_simulation(job: Job, request: SimulationRequest, folder: Path) -> None:
    """Simulate ``job`` as ``request`` says, with ``folder`` as its workspace.

    Raises:
        WorkspaceError: if ``folder`` holds a run and is not to be overwritten.
        JobError: if the request does not fit the job or the data.
    """
    if request.engine not in get_args(EngineName):
        raise JobError(
            f"engine = {request.engine!r} is not one of {', '.join(get_args(EngineName))}",
            remedy="Choose one of them with --engine.",
        )
    to_stderr(logging.WARNING)
    _make_room(folder, overwrite=request.overwrite)
    make_folder(folder)
    sites = lay_out(
        job,
        data=request.data,
        partition_spec=request.partition,
        count=request.sites,
        folder=folder,
    ).model_copy(update={"holdout_seed": request.holdout_seed, "waived": request.waived})
    _check_enough(job, len(sites.names))
    if not (sites.files or sites.holdout):
        log.warning("no records are held back to judge models by; --holdout 0.2 holds a fifth back")
        unasked = job.evaluation.model_copy(update={"federated": False})
        job = job.model_copy(update={"evaluation": unasked})
    workspace = Workspace(folder, job, pace=PACE)
    with workspace.locked(), _shown(job, request.progress) as on_round:
        simulate(
            job,
            sites,
            workspace,
            ServerMetrics(new_registry(), by_site=False),
            engine=cast(EngineName, request.engine),
            workers=request.workers,
            cluster=request.ray,
            on_round=on_round,
        )


def _check_enough(job: Job, sites: int) -> None:
    """Refuse what would wait for ever: on this machine no further site will connect."""
    if job.strategy.needs_connected > sites:
        raise JobError(
            f"strategy asks for {job.strategy.needs_connected} sites (quorum, available), and the "
            f"simulation has {sites}",
            remedy="Lower quorum and available under [strategy], or simulate more sites.",
        )


def _make_room(folder: Path, *, overwrite: bool) -> None:
    if not (folder / "run.json").exists():
        return
    if not overwrite:
        raise WorkspaceError(
            f"{folder} holds a run already, and a simulation always begins anew",
            remedy="Name another --workspace, or say --overwrite.",
        )
    shutil.rmtree(folder)


@contextmanager
def _shown(job: Job, wanted: bool) -> Iterator[OnRound]:
    if not (wanted and sys.stderr.isatty()):
        yield lambda record: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[judged]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(job.name, total=job.rounds, judged="", rate="")
        started, updates = time.monotonic(), 0

        def on_round(record: RoundRecord) -> None:
            nonlocal updates
            updates += sum(site.outcome == "result" for site in record.sites.values())
            seconds = max(time.monotonic() - started, 1e-9)
            rate = f"{record.round / seconds:.3g} rounds/s, {updates / seconds:.3g} updates/s"
            metrics = record.central or record.federated
            judged = " ".join(f"{name}={value:.4f}" for name, value in metrics.items())
            bar.update(task, advance=1, judged=judged, rate=rate)

        yield on_round

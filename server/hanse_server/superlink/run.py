"""The life of Hanse's ServerApp on a SuperLink, from its start to its ordered end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from flwr.serverapp import Grid
from hanse.config import Settings, validate
from hanse.errors import JobError, SecureAggregationError
from hanse.flower import Sender
from hanse.job import Job, load_job
from hanse.logs import to_stderr
from hanse.metrics import endpoint, new_registry
from hanse.wire.limits import MEGABYTE, Limits
from pydantic import Field

from hanse_server.app import make_server_app, run_app
from hanse_server.bounds import reply_limits
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.journal import Journal
from hanse_server.metrics import ServerMetrics
from hanse_server.serve import told_of
from hanse_server.superlink.link import SuperLink
from hanse_server.superlink.post import Post
from hanse_server.workspace import Workspace

log = logging.getLogger("hanse.server")


class RunConfig(Settings):
    """``[tool.flwr.app.config]`` of the app, and what `flwr run --run-config` puts in its place.

    Attributes:
        job: the job's file, in the app's folder; or an absolute path at the SuperLink.
        workspace: the run's folder at the SuperLink, absolute. The run goes on where it stopped.
        metrics_host: address of the Prometheus endpoint.
        metrics_port: its port; 0 for none.
    """

    job: Path = Path("job.toml")
    workspace: Path
    metrics_host: Annotated[str, Field(alias="metrics-host")] = "127.0.0.1"
    metrics_port: Annotated[int, Field(alias="metrics-port", ge=0, le=65535)] = 0


def run_on_superlink(grid: Grid, config: Mapping[str, Any]) -> None:
    """Run a job with the sites behind a SuperLink, to its end.

    Args:
        grid: Flower's.
        config: the run's configuration, as Flower hands it over.

    Raises:
        HanseError: as a run over Hanse's own link does.
    """
    to_stderr()
    settings = validate(dict(config), RunConfig, JobError, where="the run's configuration")
    if not settings.workspace.is_absolute():
        raise JobError(
            f"workspace = {str(settings.workspace)!r} is not absolute",
            remedy="Name a folder at the SuperLink, as in /var/lib/hanse/runs/heart.",
        )
    job = load_job(found(settings.job))
    refuse_secure(job)
    sender = Sender.here()
    workspace = Workspace(settings.workspace, job)
    metrics = ServerMetrics(new_registry())
    metrics.info.info({"job": job.name, "run_id": str(workspace.run_id)})
    with (
        workspace.locked(),
        endpoint(metrics.registry, settings.metrics_host, settings.metrics_port),
        told_of(workspace, job) as trail,
        closing(Journal(workspace.journal)) as journal,
        SuperLink(
            Post(grid, sender),
            workspace.run_id,
            journal=journal,
            metrics=metrics,
            trail=trail,
            limits=Limits(max_body_bytes=round(job.limits.reply_mb * MEGABYTE)),
        ) as link,
    ):
        named = GrpcGrid(link, workspace.run_id, bounds=reply_limits)
        run_app(make_server_app(job, workspace, metrics), named)
    log.info("done: %d rounds in %s", job.rounds, settings.workspace)


def found(job: Path) -> Path:
    """The job's file; a relative one lies in the app's folder, which Flower puts on the path."""
    if job.is_absolute():
        return job
    return next((Path(each) / job for each in sys.path if (Path(each) / job).is_file()), job)


def refuse_secure(job: Job) -> None:
    """Refuse what cannot work there.

    Raises:
        SecureAggregationError: if the job asks for secure aggregation.
    """
    if job.secure_aggregation.enabled:
        raise SecureAggregationError(
            f"job {job.name} asks for secure aggregation, and a SuperNode starts a process for "
            "each message: the secrets of a secure round would not outlive its first stage",
            remedy="Run the job over Hanse's own link (`hanse server run`).",
        )

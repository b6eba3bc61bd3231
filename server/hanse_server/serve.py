"""What `hanse server run` does: a server's life, from its start to its ordered end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hanse.encodings import capabilities_for
from hanse.job import Job
from hanse.logs import to_stderr
from hanse.metrics import endpoint, new_registry
from hanse.renewal import IdentityFiles
from hanse.wire.limits import MEGABYTE, Limits

from hanse_server.app import make_server_app, run_app
from hanse_server.audit import ServerTrail
from hanse_server.bounds import reply_limits
from hanse_server.checkpoint import last_round
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.journal import Journal
from hanse_server.link import LinkServer
from hanse_server.memory import give_back_large_blocks
from hanse_server.metrics import ServerMetrics
from hanse_server.provisioning.layout import Layout
from hanse_server.register import Register, no_federation
from hanse_server.workspace import Workspace

log = logging.getLogger("hanse.server")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where a server listens; a metrics port of 0 is none."""

    host: str
    port: int
    metrics_host: str
    metrics_port: int


def serve(job: Job, federation: Path, folder: Path, listening: Listening) -> None:
    """Run ``job`` with the sites of ``federation`` in the workspace ``folder``, to its end.

    Raises:
        HanseError: as the README's table of exit codes tells.
    """
    to_stderr()
    give_back_large_blocks()
    signal.signal(signal.SIGTERM, _stop)
    layout = Layout(federation)
    if not layout.register.exists():
        raise no_federation(federation)
    identity = IdentityFiles(layout.server_ca, layout.server_certificate, layout.server_key)
    workspace = Workspace(folder, job)
    metrics = ServerMetrics(new_registry())
    metrics.info.info({"job": job.name, "run_id": str(workspace.run_id)})
    with (
        workspace.locked(),
        endpoint(metrics.registry, listening.metrics_host, listening.metrics_port),
        told_of(workspace, job) as trail,
        closing(Journal(workspace.journal)) as journal,
        LinkServer(
            host=listening.host,
            port=listening.port,
            identity=identity,
            register=Register(layout.register),
            journal=journal,
            metrics=metrics,
            trail=trail,
            spool=workspace.folder,
            limits=Limits(max_body_bytes=round(job.limits.reply_mb * MEGABYTE)),
            job=job.name,
            wants=capabilities_for(job.encoding),
        ) as link,
    ):
        grid = GrpcGrid(link, workspace.run_id, bounds=reply_limits)
        run_app(make_server_app(job, workspace, metrics), grid)
    log.info("done: %d rounds in %s", job.rounds, folder)


@contextmanager
def told_of(workspace: Workspace, job: Job) -> Iterator[ServerTrail]:
    """The audit trail, in which the server's start and its end are told."""
    trail = workspace.open_trail()
    trail.started(workspace.run_id, job.digest, last_round(workspace.checkpoints))
    try:
        yield trail
    except BaseException as error:  # told here, and raised on
        trail.stopped(error)
        raise
    trail.stopped(None)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

"""The subcommand ``hanse audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from hanse.cli import Json, err, out, show

if TYPE_CHECKING:
    from hanse_client.privacy.settings import BackendName


def register(app: typer.Typer) -> None:
    """Add it to ``hanse``."""
    app.command("audit")(audit)


def audit(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job, a TOML file.")],
    records: Annotated[
        int | None,
        typer.Option(min=1, help="Of a site, where the job leaves the sampling rate to it."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=100, max=10_000, help="More see finer faults.")
    ] = 1000,
    backend: Annotated[
        str, typer.Option(help="Of the engine: auto, bookkeeping, ghost or hooks.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:1.")] = "auto",
    as_json: Json = False,
) -> None:
    """Audit private training: a run on canaries by the engine as it is installed here."""
    from hanse.errors import AuditError
    from hanse.job import load_job

    from hanse_client import device as devices
    from hanse_client.canaries import audit as audits
    from hanse_client.canaries.view import audit_result, audit_view

    job = load_job(job_file)
    with err.status(f"training on {canaries} canaries"):
        result = audits.audit(
            job,
            records=records,
            canaries=canaries,
            backend=_backend(backend),
            device=devices.resolve(device),
        )
    show(audit_result(result), as_json, lambda: out.print(audit_view(result)))
    if as_json and result.faults:  # the object says it all
        raise typer.Exit(AuditError.exit_code)
    result.verify()


def _backend(name: str) -> BackendName:
    from hanse_client.privacy.settings import BackendName

    known: tuple[BackendName, ...] = get_args(BackendName)
    for each in known:
        if each == name:
            return each
    raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--backend")

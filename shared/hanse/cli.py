"""The command ``hanse``: gathers the subcommands of the sides that are installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table

import hanse
from hanse.errors import HanseError, JobError, MissingExtraError

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

app = typer.Typer(
    help="Federated learning across sites that keep their data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
task_app = typer.Typer(help="The tasks that are installed here.", no_args_is_help=True)
app.add_typer(task_app, name="task")


@dataclass(frozen=True)
class Side:
    """A package whose subcommands are there if its extra is installed.

    Attributes:
        needs: a module that only this extra brings.
        commands: what ``hanse`` offers of it.
    """

    extra: str
    module: str
    needs: str
    commands: tuple[str, ...]


SIDES = (
    Side(
        "server",
        "hanse_server.cli",
        "grpc_health",
        ("server", "provision", "simulate", "report", "demo"),
    ),
    Side("client", "hanse_client.cli", "opacus", ("client",)),
)


def main() -> None:
    """Run the command line; every failure is told in one line, with its remedy and exit code."""
    for side in SIDES:
        _gather(side)
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
    except HanseError as error:
        _tell(error, as_json=as_json)
        sys.exit(error.exit_code)
    except click.ClickException as usage:
        usage.show()
        sys.exit(usage.exit_code)
    except (click.Abort, KeyboardInterrupt):
        err.print("stopped")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def show(result: Any, as_json: bool, render: Callable[[], None]) -> None:
    """Print ``result`` as JSON, or by ``render`` for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, default=str) + "\n")
    else:
        render()


def _tell(error: HanseError, *, as_json: bool) -> None:
    if as_json:
        told = {"error": error.label, "message": error.message, "remedy": error.remedy}
        sys.stdout.write(json.dumps(told | {"exit_code": error.exit_code}) + "\n")
    err.print(f"[bold red]error[/] ({error.label}): ", end="")
    err.print(error.message, markup=False, soft_wrap=True)
    err.print("  " + error.remedy, markup=False, soft_wrap=True)


def _gather(side: Side) -> None:
    if importlib.util.find_spec(side.needs) is not None:
        importlib.import_module(side.module).register(app)
        return
    for command in side.commands:
        app.command(command, help=f"Needs the extra: pip install 'hanse[{side.extra}]'")(
            _missing(command, side.extra)
        )


def _missing(command: str, extra: str) -> Callable[[], None]:
    def stub() -> None:
        raise MissingExtraError(
            f"`hanse {command}` needs packages that are not installed here",
            remedy=f"pip install 'hanse[{extra}]'",
        )

    return stub


def _version(asked: bool) -> None:
    if asked:
        out.print(f"hanse {hanse.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@task_app.command("list")
def list_tasks(as_json: Json = False) -> None:
    """List the tasks that are installed here, with the digests that a policy can pin."""
    from hanse.task import task_digest, task_names

    found = [
        {"name": name, "class": reference, "digest": task_digest(name)}
        for name, reference in task_names().items()
    ]

    def render() -> None:
        table = Table("name", "class", "digest")
        for task in found:
            table.add_row(task["name"], task["class"], task["digest"])
        out.print(table)

    show({"tasks": found}, as_json, render)


@task_app.command("check")
def check_task(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job that uses the task.")],
    data: Annotated[
        Path | None, typer.Option(help="Sample records; random ones are not made up.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try a job's task on sample records: what a site would refuse shows here first."""
    from dataclasses import asdict

    from hanse.job import load_job
    from hanse.taskcheck import check_task as check

    job = load_job(job_file)
    findings = check(job.task.name, job.task.options, sample=data or job.simulation.data)

    def render() -> None:
        for finding in findings:
            mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
            out.print(f"{mark} {finding.name}: ", end="")
            out.print(finding.message, markup=False)
            if not finding.ok:
                out.print(f"       {finding.remedy}", markup=False)

    show({"findings": [asdict(finding) for finding in findings]}, as_json, render)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(JobError.exit_code)


if __name__ == "__main__":
    main()

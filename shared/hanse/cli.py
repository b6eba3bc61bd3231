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
from rich.markup import escape

import hanse
from hanse.errors import HanseError, MissingExtraError, TaskError

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""

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
    """Subcommands that are there if an extra is installed.

    Attributes:
        register: the function that adds them, as ``module:function``.
        needs: modules that only this extra brings.
        commands: their names.
    """

    extra: str
    register: str
    needs: tuple[str, ...]
    commands: tuple[str, ...]


SIDES = (
    Side("server", "hanse_server.cli:register", ("matplotlib",), ("server", "provision", "report")),
    Side("client", "hanse_client.cli:register", ("opacus",), ("client",)),
    Side("client", "hanse_client.canaries.cli:register", ("opacus",), ("audit",)),
    Side(
        "all",
        "hanse_server.cli:register_simulation",
        ("matplotlib", "opacus"),
        ("simulate", "demo"),
    ),
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
        if as_json:
            _tell_json("usage", usage.format_message(), "See --help.", usage.exit_code)
        usage.show()
        sys.exit(usage.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:
        if as_json:
            _tell_json("interrupted", "stopped", "Start it again.", INTERRUPTED)
        err.print("stopped")
    sys.exit(code if isinstance(code, int) else 0)


def show(result: Any, as_json: bool, render: Callable[[], None]) -> None:
    """Print ``result`` as JSON, or by ``render`` for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, default=str) + "\n")
    else:
        render()


def _tell(error: HanseError, *, as_json: bool) -> None:
    if as_json:
        _tell_json(error.label, error.message, error.remedy, error.exit_code)
    err.print(f"[bold red]error[/] ({error.label}): ", end="")
    err.print(error.message, markup=False, soft_wrap=True)
    err.print("  " + error.remedy, markup=False, soft_wrap=True)


def _tell_json(label: str, message: str, remedy: str, exit_code: int) -> None:
    told = {"error": label, "message": message, "remedy": remedy, "exit_code": exit_code}
    sys.stdout.write(json.dumps(told) + "\n")


def _gather(side: Side) -> None:
    if all(importlib.util.find_spec(module) is not None for module in side.needs):
        module, _, function = side.register.partition(":")
        getattr(importlib.import_module(module), function)(app)
        return
    for command in side.commands:
        app.command(
            command,
            help=escape(f"Needs the extra: pip install 'hanse[{side.extra}]'"),
            # Whatever it was to do: the answer is the extra, not the option's name.
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_missing(command, side.extra))


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
def list_tasks(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", help="Of these alone; also `package.module:Class`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the tasks that are installed here, with the digests that a policy can pin."""
    from hanse.task import task_digest, task_names

    known = task_names()
    found = [
        {"name": name, "class": known.get(name, name), "digest": task_digest(name)}
        for name in names or known
    ]

    def render() -> None:
        for task in found:  # no table: a digest that is cut off pins nothing
            out.print(f"{task['name']} ({task['class']})\n  {task['digest']}", soft_wrap=True)

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
        raise typer.Exit(TaskError.exit_code)


if __name__ == "__main__":
    main()

"""The command line: its subcommands, its errors in words and as JSON, its exit codes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import click
import hanse
import pytest
import typer
from hanse import cli
from hanse.errors import BudgetError, TaskError
from hanse.examples import example

EVERY_COMMAND = (
    "audit",
    "demo",
    "provision",
    "report",
    "simulate",
    "client audit",
    "client check",
    "client identity",
    "client ledger",
    "client renew",
    "client request",
    "client run",
    "server audit",
    "server flower-app",
    "server run",
    "server status",
    "task check",
    "task list",
)


@dataclass(frozen=True)
class Ended:
    code: object
    out: str
    err: str


Hanse = Callable[..., Ended]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """A ``hanse`` to which no side has added its subcommands yet."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback()(cli._root)
    app.add_typer(cli.task_app, name="task")
    monkeypatch.setattr(cli, "app", app)
    return app


@pytest.fixture
def run(
    fresh: typer.Typer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hanse:
    monkeypatch.setenv("COLUMNS", "200")

    def end(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["hanse", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return Ended(ended.value.code, told.out, told.err)

    return end


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path.strip(), command
        return
    for name, child in command.commands.items():
        yield from leaves(child, f"{path} {name}")


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Let it be as if ``missing`` were not installed."""
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == missing else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_the_commands_are_those_there_are(fresh: typer.Typer) -> None:
    for side in cli.SIDES:
        cli._gather(side)

    assert sorted(name for name, _ in leaves(typer.main.get_command(fresh))) == sorted(
        EVERY_COMMAND
    )


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_command_explains_itself_and_speaks_json(run: Hanse, command: str) -> None:
    ended = run(*command.split(), "--help")

    assert ended.code == 0
    assert "--json" in ended.out
    for name, each in leaves(typer.main.get_command(cli.app)):
        if name == command:
            unexplained = [p.name for p in each.params if not getattr(p, "help", None)]
            assert unexplained == []


def test_the_help_of_arguments_is_shown(run: Hanse) -> None:
    assert "The job, a TOML file." in run("simulate", "--help").out


def test_the_version(run: Hanse) -> None:
    assert run("--version") == Ended(0, f"hanse {hanse.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuchcommand",),
        ("simulate", "job.toml", "--bogus"),
        ("simulate",),
        ("simulate", "job.toml", "--rounds", "0"),
        ("simulate", "job.toml", "--sites", "-2"),
        ("simulate", "job.toml", "--holdout", "1.5"),
        ("server", "run", "job.toml", "--port", "99999"),
        ("audit", "job.toml", "--canaries", "1"),
        ("audit", str(example("heart") / "job.toml"), "--backend", "abacus"),
        ("provision", "--sign", "no-equals-sign"),
    ],
)
def test_a_mistake_on_the_command_line(run: Hanse, arguments: tuple[str, ...]) -> None:
    in_words = run(*arguments)
    as_json = run(*arguments, "--json")

    assert in_words.code == as_json.code == 2
    assert "Error: " in in_words.err
    assert in_words.out == ""
    told = json.loads(as_json.out)
    assert (told["error"], told["exit_code"]) == ("usage", 2)
    assert told["message"] in in_words.err


@pytest.mark.parametrize(
    ("code", "label", "arguments"),
    [
        (10, "job", ("simulate", "{}/none.toml")),
        (10, "job", ("server", "run", "{}/none.toml")),
        (10, "job", ("task", "check", "{}/none.toml")),
        (10, "job", ("audit", "{}/none.toml")),
        (11, "site_file", ("client", "check", "{}/site.toml")),
        (11, "site_file", ("client", "run", "{}/site.toml")),
        (11, "site_file", ("client", "ledger", "{}/site.toml")),
        (11, "site_file", ("client", "audit", "{}/site.toml")),
        (12, "task", ("task", "list", "nosuchtask")),
        (13, "register", ("provision", "--remove", "a", "--federation", "{}")),
        (14, "workspace", ("report", "--workspace", "{}")),
        (14, "workspace", ("server", "status", "--workspace", "{}")),
        (30, "certificate", ("client", "request", "Not_A_Name", "--folder", "{}")),
    ],
)
def test_an_error_is_one_line_its_remedy_and_its_code(
    run: Hanse, tmp_path: Path, code: int, label: str, arguments: tuple[str, ...]
) -> None:
    given = [each.format(tmp_path) for each in arguments]

    in_words = run(*given)
    as_json = run(*given, "--json")

    message, remedy = in_words.err.splitlines()
    assert in_words.code == as_json.code == code
    assert in_words.out == ""
    assert json.loads(as_json.out) == {
        "error": label,
        "message": message.removeprefix(f"error ({label}): "),
        "remedy": remedy.strip(),
        "exit_code": code,
    }


def test_a_task_that_does_not_hold_up_is_told_check_by_check(run: Hanse, tmp_path: Path) -> None:
    folder = example("heart")
    sound = run("task", "check", str(folder / "job.toml"), "--data", str(folder / "hungary.csv"))
    assert sound.code == 0, sound.out
    assert "FAIL" not in sound.out
    text = (folder / "job.toml").read_text().replace('column = "num"', 'column = "number"')
    (tmp_path / "job.toml").write_text(text)
    arguments = ("task", "check", str(tmp_path / "job.toml"), "--data")
    failed = run(*arguments, str(folder / "hungary.csv"), "--json")
    assert failed.code == TaskError.exit_code
    findings = {each["name"]: each for each in json.loads(failed.out)["findings"]}
    assert findings["model"]["ok"]
    assert not findings["data"]["ok"]
    assert findings["data"]["remedy"]


def test_words_in_brackets_reach_the_screen(run: Hanse, fresh: typer.Typer) -> None:
    @fresh.command("fail")
    def fail() -> None:
        raise BudgetError("[budget] is spent", remedy="Change [budget].")

    assert run("fail").err == "error (budget): [budget] is spent\n  Change [budget].\n"


@pytest.mark.parametrize("arguments", [("wait",), ("wait", "--json")])
def test_an_interruption(run: Hanse, fresh: typer.Typer, arguments: tuple[str, ...]) -> None:
    @fresh.command("wait")
    def wait(as_json: cli.Json = False) -> None:
        raise KeyboardInterrupt

    ended = run(*arguments)

    assert ended.code == 130
    assert ended.err.strip() == "stopped"
    if "--json" in arguments:
        assert json.loads(ended.out)["exit_code"] == 130


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("matplotlib", "server", ("server", "run", "job.toml", "--port", "1")),
        ("matplotlib", "server", ("provision", "a")),
        ("opacus", "client", ("client", "run", "site.toml")),
        ("opacus", "client", ("audit", "job.toml", "--canaries", "500")),
        ("opacus", "all", ("demo", "--json")),
        ("matplotlib", "all", ("simulate", "job.toml", "--sites", "3")),
    ],
)
def test_a_missing_extra(
    run: Hanse,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    extra: str,
    arguments: tuple[str, ...],
) -> None:
    without(monkeypatch, missing)

    ended = run(*arguments)

    assert ended.code == 15
    assert ended.err.endswith(f"  pip install 'hanse[{extra}]'\n")
    if "--json" in arguments:
        assert json.loads(ended.out)["error"] == "missing_extra"


def test_one_side_works_without_the_other(run: Hanse, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "matplotlib")

    assert run("client", "ledger", "--help").code == 0
    assert "hanse[server]" in run("--help").out


def test_a_task_is_listed_with_its_whole_digest(run: Hanse) -> None:
    told: dict[str, Any] = json.loads(run("task", "list", "--json").out)
    named = {task["name"]: task for task in told["tasks"]}
    own = json.loads(run("task", "list", "hanse.tasks.image:Image", "--json").out)["tasks"]

    assert {"image", "tabular"} <= named.keys()
    assert named["tabular"]["digest"] in run("task", "list").out
    assert [task["class"] for task in own] == ["hanse.tasks.image:Image"]
    assert len(own[0]["digest"]) == 64

"""What the README shows works: its commands, its Python, its links, its names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
import typer
from hanse import cli
from hanse.task import Examples, NoOptions, Task
from hanse_server.strategies import FLOWER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for language, text in BLOCKS
    if language == "sh"
    for line in text.splitlines()
]
HANSE = [line for line in COMMANDS if line.startswith("hanse ")]


def hanse_command() -> click.Command:
    for side in cli.SIDES:
        cli._gather(side)
    return typer.main.get_command(cli.app)


@pytest.mark.parametrize("line", HANSE)
def test_a_hanse_command_is_one_that_there_is(line: str) -> None:
    command, arguments = hanse_command(), shlex.split(line)[1:]
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        assert name in command.commands, f"{name} in: {line}"
        command = command.commands[name]
    command.make_context(command.name, arguments)  # refuses what it does not know


def test_the_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in HANSE if "example" in line])
def test_the_files_that_commands_name_are_there(line: str) -> None:
    paths = [word for word in shlex.split(line) if word.startswith("deploy/")]
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_strategies_named_are_those_there_are() -> None:
    for name in FLOWER:
        assert name in README


def test_the_task_of_ones_own_works(tmp_path: Path) -> None:
    (source,) = [text for language, text in BLOCKS if language == "python"]
    found: dict[str, type[Task[NoOptions]]] = {}
    exec(compile(source, "README.md", "exec"), found)  # noqa: S102
    task = found["Sine"](NoOptions())
    data = tmp_path / "sine.csv"
    data.write_text("0.0,0.0\n1.0,0.84\n")
    examples = task.read(data)
    assert isinstance(examples, Examples)
    outputs = task.model()(*examples.inputs)
    assert task.loss(outputs, examples.targets).shape == (2,)
    assert task.metrics(torch.zeros(2, 1), examples.targets) == {"mae": pytest.approx(0.42)}

"""The command `hanse audit`: what it prints, and what it ends with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hanse import cli
from hanse.errors import AuditError
from hanse.examples import example

from tests.privacy import bugs_of_noise
from tests.privacy.planting import Ground, repeatable

JOB = str(example("heart") / "job.toml")
QUICK = ("--canaries", "300")


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ground:
    monkeypatch.setenv("COLUMNS", "100")
    repeatable(monkeypatch)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback()(cli._root)  # to which no subcommand was added yet
    monkeypatch.setattr(cli, "app", app)
    return Ground(patch=monkeypatch, folder=tmp_path)


def ended(ground: Ground, *arguments: str) -> object:
    """The exit code of ``hanse audit``."""
    ground.patch.setattr(sys, "argv", ["hanse", "audit", JOB, *QUICK, *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code


def test_an_engine_that_is_sound_passes_in_words(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(ground) == 0
    told = capsys.readouterr().out
    assert "heart: 40 steps, sampling rate 1, noise multiplier 8.79" in told
    assert "at most 3 at delta 1e-05" in told
    assert "Nothing speaks against the claim" in told
    assert "cannot prove" in told


def test_an_engine_that_is_not_fails_in_words(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    bugs_of_noise.scaled(0.5)(ground)
    assert ended(ground) == AuditError.exit_code
    told = capsys.readouterr()
    assert "FAIL" in told.out
    assert "does not carry out the mechanism" in told.out
    assert told.err.startswith("error (audit): noise = ")


def test_the_outcome_is_one_object_whether_it_passed_or_not(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(code: int) -> dict[str, Any]:
        assert ended(ground, "--json") == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    sound = told(0)
    bugs_of_noise.scaled(0.01)(ground)
    broken = told(AuditError.exit_code)
    assert (sound["passed"], sound["faults"]) == (True, [])
    assert sound["mechanism"]["steps"] == 40
    assert not broken["passed"]
    assert broken["faults"][0].startswith("noise = ")
    # So little noise is left that the guesses alone disprove the claim.
    assert broken["at_least"] > broken["claimed"] == pytest.approx(3.0, abs=0.01)
    assert "above the 3 that is claimed" in broken["faults"][-1]

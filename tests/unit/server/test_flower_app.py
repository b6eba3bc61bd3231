"""The folder that `flwr run` takes, and the apps that it names."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from hanse.cli import app as command
from hanse.errors import JobError, SecureAggregationError, WorkspaceError
from hanse.examples import example
from hanse.job import load_job
from hanse_server.superlink.folder import write_flower_app
from hanse_server.superlink.run import found
from typer.testing import CliRunner

JOB = example("heart") / "job.toml"


def test_the_folder_names_both_apps_and_holds_the_job_and_no_code(tmp_path: Path) -> None:
    write_flower_app(JOB, tmp_path / "app", Path("/var/lib/hanse/heart"))
    project = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    components = project["tool"]["flwr"]["app"]["components"]
    kinds = {"serverapp": ServerApp, "clientapp": ClientApp}
    for name, kind in kinds.items():
        module, _, attribute = components[name].partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), kind)
    assert project["tool"]["flwr"]["app"]["config"]["workspace"] == "/var/lib/hanse/heart"
    assert load_job(tmp_path / "app" / "job.toml").digest == load_job(JOB).digest
    assert sorted(path.name for path in (tmp_path / "app").iterdir()) == [
        "job.toml",
        "pyproject.toml",
    ]


def test_what_cannot_work_there_is_told_before_it_is_sent(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    there = Path("/var/lib/hanse/heart")
    job.write_text(JOB.read_text() + "\n[secure_aggregation]\nenabled = true\n")
    with pytest.raises(SecureAggregationError):
        write_flower_app(job, tmp_path / "app", there)
    job.write_text(JOB.read_text().replace("[evaluation]", '[evaluation]\ncentral = "x.csv"'))
    with pytest.raises(JobError, match=r"evaluation\.central = 'x\.csv' is relative"):
        write_flower_app(job, tmp_path / "app", there)
    with pytest.raises(WorkspaceError, match="not absolute"):
        write_flower_app(JOB, tmp_path / "app", Path("runs/heart"))
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "mine.txt").touch()
    with pytest.raises(WorkspaceError, match="not empty"):
        write_flower_app(JOB, tmp_path / "app", there)


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    from hanse_server.cli import register

    register(command)
    arguments = ["server", "flower-app", str(JOB), str(tmp_path / "app")]
    done = CliRunner().invoke(command, [*arguments, "--workspace", "/var/lib/hanse/heart"])
    assert done.exit_code == 0, done.output
    assert "flwr run" in done.output


def test_the_job_of_the_apps_folder_is_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job-of-this-app.toml").touch()
    assert found(Path("job-of-this-app.toml")) == Path("job-of-this-app.toml")
    monkeypatch.syspath_prepend(tmp_path)
    assert found(Path("job-of-this-app.toml")) == tmp_path / "job-of-this-app.toml"
    assert found(JOB) == JOB

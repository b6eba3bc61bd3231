"""The folder of a run: of one job, for one process, and whole after a crash."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hanse.errors import WorkspaceError
from hanse.examples import example
from hanse.job import Job, load_job
from hanse_server.history import RoundRecord, SiteRound, Terms, read_history
from hanse_server.views import run_outcome
from hanse_server.workspace import Workspace, in_use, read_run


def job(**changes: Any) -> Job:
    return load_job(example("heart") / "job.toml").model_copy(update=changes)


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        outcome="completed",
        started_at=1.0,
        seconds=2.0,
        sites={"cleveland": SiteRound(outcome="result", seconds=0.5, metrics={"epsilon": 1.0})},
        train={},
        federated={"loss": 0.5},
        central={},
        bytes_up=10,
        bytes_down=20,
    )


def test_a_run_goes_on_under_its_id(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "run", job())

    again = Workspace(tmp_path / "run", job())

    assert again.run_id == first.run_id
    assert read_run(tmp_path / "run")["job"]["name"] == "heart"
    assert Workspace(tmp_path / "other", job()).run_id != first.run_id


def test_another_job_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    Workspace(tmp_path, job())

    with pytest.raises(WorkspaceError, match=r"another job: rounds, seed differ"):
        Workspace(tmp_path, job(rounds=7, seed=99))


def test_what_shapes_no_result_may_change(tmp_path: Path) -> None:
    first = job()
    run_id = Workspace(tmp_path, first).run_id
    limits = first.limits.model_copy(update={"reply_mb": 1.0})

    assert Workspace(tmp_path, job(limits=limits)).run_id == run_id


def test_one_process_at_a_time(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, job())
    assert not in_use(tmp_path)

    with workspace.locked():
        assert in_use(tmp_path)
        with pytest.raises(WorkspaceError, match="in use"), workspace.locked():
            pass

    assert not in_use(tmp_path)
    with workspace.locked():
        pass


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, job())
    for number in (1, 2, 3):
        workspace.append(record(number))
    file = tmp_path / "history.jsonl"
    file.write_bytes(file.read_bytes()[:-40])

    assert [line["round"] for line in read_history(tmp_path)] == [1, 2]

    workspace.truncate(2)
    workspace.append(record(3))
    assert [line["round"] for line in read_history(tmp_path)] == [1, 2, 3]


def test_rounds_without_a_checkpoint_are_forgotten(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, job())
    for number in (1, 2, 3):
        workspace.append(record(number))

    workspace.truncate(1)

    assert [line["round"] for line in read_history(tmp_path)] == [1]


def test_a_folder_that_is_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"no run\.json"):
        read_run(tmp_path)
    assert read_history(tmp_path) == []
    assert not in_use(tmp_path)


def test_a_damaged_run(tmp_path: Path) -> None:
    Workspace(tmp_path, job())
    (tmp_path / "run.json").write_text("{")

    with pytest.raises(WorkspaceError, match="damaged"):
        Workspace(tmp_path, job())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(WorkspaceError, match="cannot be made") as refused:
        Workspace(tmp_path / "file", job())

    assert "--workspace" in refused.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "7",
        "{}",
        "[" * 100_000,
        '{"run_id": 1}',
        '{"run_id": "x", "job": {}}',
        '{"run_id": 1, "job": 2}',
    ],
)
def test_a_run_of_another_form(tmp_path: Path, text: str) -> None:
    Workspace(tmp_path, job())
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(WorkspaceError, match=r"run\.json cannot be read: it is damaged"):
        Workspace(tmp_path, job())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"round":1', b'"round":[1]'),
        (b'"sites":{', b'"sites":{"east":1,'),
        (b'"bytes_up"', b'"bytes_pu"'),
        (b'"bytes_up"', b'"\xff"'),
        (b"{", b"[" * 100_000),
    ],
)
def test_a_damaged_line_before_the_last_is_told(tmp_path: Path, old: bytes, new: bytes) -> None:
    """It is not taken for one that a crash cut off: the rounds after it would be lost too."""
    workspace = Workspace(tmp_path, job())
    for number in (1, 2):
        workspace.append(record(number))
    file = tmp_path / "history.jsonl"
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    with pytest.raises(WorkspaceError, match=r"history\.jsonl cannot be read: line 1 is damaged"):
        read_history(tmp_path)


def test_what_a_site_did_is_whole_whatever_is_left_out_of_its_line(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, job())
    workspace.append(record(1))
    line = json.loads((tmp_path / "history.jsonl").read_text())
    line["sites"] = {"east": {"outcome": "result", "seconds": 1.0, "terms": asdict(Terms())}}
    (tmp_path / "history.jsonl").write_text(json.dumps(line) + "\n")
    assert read_history(tmp_path)[0]["sites"]["east"]["metrics"] == {}
    assert run_outcome(job(), tmp_path)["sites"] == {"east": {"rounds": 1}}

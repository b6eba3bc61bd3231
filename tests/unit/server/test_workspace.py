"""The folder of a run: of one job, for one process, and whole after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hanse.errors import WorkspaceError
from hanse.examples import example
from hanse.job import Job, load_job
from hanse_server.workspace import (
    RoundRecord,
    SiteRound,
    Workspace,
    in_use,
    read_history,
    read_run,
)


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

"""A full disk under the server: it ends by name, and goes on where it stopped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from hanse.errors import WorkspaceError
from hanse.flower import to_record, to_tensors
from hanse.identity import node_id_of
from hanse.job import Job
from hanse_server.archive import Archive
from hanse_server.checkpoint import Progress
from hanse_server.history import RoundRecord
from hanse_server.secagg.transcript import Transcript
from hanse_server.status import Status, StatusFile, read_status
from hanse_server.workspace import Workspace

from tests.faults.disks import full_beyond
from tests.harbour import job
from tests.loopback import Loopback


def model(number: int) -> ArrayRecord:
    return to_record({"weight": torch.full((300,), float(number))})


def record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        outcome="completed",
        started_at=0.0,
        seconds=1.0,
        sites={},
        train={},
        federated={},
        central={"loss": 1.0 / number},
        bytes_up=0,
        bytes_down=0,
    )


def keep(archive: Archive, number: int) -> None:
    state = {"velocity": torch.zeros(200)}
    archive.keep(record(number), model(number), model(number), Progress(round=number), state)


def keep_on(archive: Archive) -> None:
    for number in range(2, 20):  # the history grows, whatever else there is room for
        keep(archive, number)


@pytest.mark.parametrize("size", [0, 100, 500, 1000, 1300, 1500, 2000])
def test_a_round_that_cannot_be_kept_ends_the_run_by_name(tmp_path: Path, size: int) -> None:
    asked: Job = job()
    archive = Archive(asked, Workspace(tmp_path, asked))
    archive.resume()
    keep(archive, 1)
    with full_beyond(size), pytest.raises(WorkspaceError, match="cannot be written"):
        keep_on(archive)
    again = Archive(asked, Workspace(tmp_path, asked))
    last = again.resume()
    assert last is not None
    number = last.progress.round
    assert to_tensors(last.arrays)["weight"].tolist() == [float(number)] * 300
    keep(again, number + 1)
    assert again.resume() is not None


def test_a_workspace_that_cannot_be_begun_or_gone_on_with_says_so(tmp_path: Path) -> None:
    asked = job()
    with full_beyond(10), pytest.raises(WorkspaceError, match="cannot be written"):
        Workspace(tmp_path / "new", asked)
    workspace = Workspace(tmp_path / "new", asked)
    workspace.append(record(1))
    with full_beyond(10), pytest.raises(WorkspaceError, match="cannot be written"):
        workspace.append(record(2))
    with full_beyond(10), pytest.raises(WorkspaceError, match="cannot be written"):
        workspace.truncate(1)
    assert len(workspace.truncate(1)) == 1


def test_a_secure_round_that_cannot_be_noted_says_so(tmp_path: Path) -> None:
    with full_beyond(10), pytest.raises(WorkspaceError, match="cannot be written"):
        Transcript.resume(tmp_path / "secure.json", 1)


def test_the_status_is_shown_again_once_there_is_room(tmp_path: Path) -> None:
    with StatusFile(tmp_path, every=0.01) as file:
        file.show(Status(phase="waiting", round=1, rounds=3))
        wait_for_round(tmp_path, 1)
        with full_beyond(10):
            file.show(Status(phase="training", round=2, rounds=3))
            time.sleep(0.1)
        file.show(Status(phase="training", round=3, rounds=3))
        wait_for_round(tmp_path, 3)


def wait_for_round(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 5
    while not (folder / "status.json").exists() or read_status(folder).round != number:
        assert time.monotonic() < deadline, "the status did not change"
        time.sleep(0.01)


def test_a_journal_that_cannot_be_written_ends_the_exchange_by_name(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = loopback.server()
    loopback.client("north", lambda message: Message(message.content, reply_to=message))
    server.await_sites("north")

    def full(*_: object) -> None:
        raise WorkspaceError("the journal cannot be used: disk full")

    monkeypatch.setattr(server.journal, "mark", full)
    grid = server.grid()
    message = Message(RecordDict(), node_id_of("north"), "train")
    with pytest.raises(WorkspaceError, match="disk full"):
        list(grid.send_and_receive([message], timeout=20))

"""Checkpoints and durable files: whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hanse.errors import WorkspaceError
from hanse.flower import to_record, to_tensors
from hanse_server import checkpoint
from hanse_server.checkpoint import Checkpoint, Progress
from hanse_server.durable import new_folder, write_file
from safetensors import safe_open


def make(number: int) -> Checkpoint:
    arrays = to_record({"z": torch.ones(2), "a": torch.tensor(1), "b": torch.ones(1).bfloat16()})
    return Checkpoint(
        progress=Progress(round=number, best=0.5, best_round=1),
        arrays=arrays,
        strategy={"velocity/z": torch.ones(2, dtype=torch.float64)},
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(3))
    back = checkpoint.load_last(tmp_path)
    assert back is not None
    assert back.progress == make(3).progress
    assert list(back.arrays) == ["z", "a", "b"]  # Flower's strategies go by this order
    for name, tensor in to_tensors(make(3).arrays).items():
        found = to_tensors(back.arrays)[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    assert back.strategy["velocity/z"].dtype == torch.float64


def test_none_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_last(tmp_path) is None


def test_old_ones_are_removed(tmp_path: Path) -> None:
    for number in range(1, 6):
        checkpoint.save(tmp_path, make(number))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["round-00004", "round-00005"]


def test_a_damaged_one_is_told(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(1))
    (tmp_path / "round-00001" / "model.safetensors").write_bytes(b"\x00" * 4)
    with pytest.raises(WorkspaceError, match="damaged"):
        checkpoint.load_last(tmp_path)


def test_a_folder_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    def half() -> None:
        with new_folder(tmp_path / "round-00007") as folder:
            (folder / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert checkpoint.load_last(tmp_path) is None


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_file(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_model_is_kept_with_its_statement(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save_model(path, make(1).arrays, {"privacy": "none"})
    assert torch.equal(checkpoint.load_model(path)["z"], torch.ones(2))
    assert json.loads(path.with_suffix(".json").read_text()) == {"privacy": "none"}
    with safe_open(path, framework="pt") as alone:
        assert json.loads(alone.metadata()[checkpoint.STATEMENT]) == {"privacy": "none"}


@pytest.mark.parametrize(
    "progress",
    [
        "[" * 100_000,
        "[]",
        '{"names": [], "progress": 3}',
        '{"names": [], "progress": {"round": "x"}}',
        '{"names": [], "progress": {"round": 3, "missed": [1]}}',
    ],
)
def test_progress_of_another_form_is_damage(tmp_path: Path, progress: str) -> None:
    checkpoint.save(tmp_path, Checkpoint(progress=Progress(round=3), arrays=to_record({})))
    (tmp_path / "round-00003" / "progress.json").write_text(progress)
    with pytest.raises(WorkspaceError, match="round-00003 is damaged"):
        checkpoint.load_last(tmp_path)

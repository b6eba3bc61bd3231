"""A site's records: hold-out and fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hanse.errors import DataError
from hanse.records import concatenate, fingerprint, hold_out
from hanse.task import Examples


def examples(count: int) -> Examples:
    numbers = torch.arange(count)
    return Examples((numbers.float().unsqueeze(1),), numbers)


def test_the_hold_out_takes_part_in_nothing_else() -> None:
    rest, held_out = hold_out(examples(100), 0.25, seed=3)
    assert held_out is not None
    assert (len(rest), len(held_out)) == (75, 25)
    assert set(rest.targets.tolist()).isdisjoint(held_out.targets.tolist())
    assert torch.equal(rest.inputs[0].squeeze(1).long(), rest.targets)


def test_the_hold_out_is_a_function_of_its_seed() -> None:
    _, first = hold_out(examples(100), 0.25, seed=3)
    _, again = hold_out(examples(100), 0.25, seed=3)
    _, other = hold_out(examples(100), 0.25, seed=4)
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets, other.targets)


def test_no_hold_out_keeps_all() -> None:
    rest, held_out = hold_out(examples(10), 0.0, seed=0)
    assert held_out is None
    assert len(rest) == 10


def test_concatenation_keeps_order() -> None:
    both = concatenate([examples(2), examples(3)])
    assert both.targets.tolist() == [0, 1, 0, 1, 2]


def test_a_fingerprint_is_of_the_bytes_not_of_the_name(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(b"1,2\n")
    (tmp_path / "c.csv").write_bytes(b"1,3\n")
    assert fingerprint(tmp_path / "a.csv") == fingerprint(tmp_path / "b.csv")
    assert fingerprint(tmp_path / "a.csv") != fingerprint(tmp_path / "c.csv")


def test_a_folders_fingerprint_is_of_all_its_files(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "class").mkdir(parents=True)
        (tmp_path / folder / "class" / "x.png").write_bytes(b"x")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "class" / "y.png").write_bytes(b"y")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        fingerprint(tmp_path / "none.csv")

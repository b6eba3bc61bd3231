"""A site's records: hold-out and fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hanse.errors import DataError
from hanse.records import Data, concatenate, fingerprint, hold_out, read_records
from hanse.task import Examples, NoOptions, Task
from torch import Tensor, nn


def examples(count: int) -> Examples:
    numbers = torch.arange(count)
    return Examples((numbers.float().unsqueeze(1),), numbers)


def test_the_hold_out_takes_part_in_nothing_else() -> None:
    rest, held_out = hold_out(examples(100), 0.25, seed=3)
    assert held_out is not None
    assert len(rest) + len(held_out) == 100
    assert 12 <= len(held_out) <= 38  # three standard deviations of Binomial(100, 0.25)
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


def test_a_record_more_or_less_moves_no_other_one() -> None:
    whole = examples(100)
    rest, held_out = hold_out(whole, 0.25, seed=3)
    assert held_out is not None
    for removed in range(0, 100, 7):
        kept = whole.take(torch.tensor([i for i in range(100) if i != removed]))
        fewer, fewer_out = hold_out(kept, 0.25, seed=3)
        assert fewer_out is not None
        assert fewer.targets.tolist() == [i for i in rest.targets.tolist() if i != removed]
        assert fewer_out.targets.tolist() == [i for i in held_out.targets.tolist() if i != removed]


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


def test_a_folder_around_a_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for name in ("a.csv", "folder/below/b.csv"):
        (tmp_path / name).write_bytes(b"1,2\n")
    assert fingerprint(tmp_path / "a.csv") == fingerprint(tmp_path / "folder")


def test_names_in_a_folder_count_for_nothing_and_copies_do(tmp_path: Path) -> None:
    for name in ("one/a", "one/b", "two/z", "two/below/y", "three/a", "three/b", "three/copy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" if name[-1] in "az" else "y")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "three")


def test_a_file_cut_in_two_is_other_data(tmp_path: Path) -> None:
    for name, text in (("whole/a", "xy"), ("cut/a", "x"), ("cut/b", "y")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert fingerprint(tmp_path / "whole") != fingerprint(tmp_path / "cut")


class Lines(Task[NoOptions]):
    """A number a line; what is in ``meanwhile`` happens while they are read."""

    meanwhile: ClassVar[list[Callable[[], object]]] = []

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def read(self, source: Path) -> Examples:
        numbers = torch.tensor([float(line) for line in source.read_text().split()])
        for happens in self.meanwhile:
            happens()
        return Examples((numbers.unsqueeze(1),), numbers)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.squeeze(1) - targets

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def test_records_carry_the_fingerprints_of_both_files(tmp_path: Path) -> None:
    for name, text in (("train", "1 2 3"), ("copy", "1 2 3"), ("test", "4")):
        (tmp_path / name).write_text(text)
    train = tmp_path / "train"
    held_out = read_records(Lines(NoOptions()), Data(train=train, holdout=0.4))
    apart = read_records(Lines(NoOptions()), Data(train=train, test=tmp_path / "test"))
    same = read_records(Lines(NoOptions()), Data(train=train, test=tmp_path / "copy"))
    assert held_out.fingerprints == same.fingerprints == (fingerprint(train),)
    assert apart.fingerprints == (fingerprint(train), fingerprint(tmp_path / "test"))


def test_data_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "train"
    source.write_text("1 2 3")
    monkeypatch.setattr(Lines, "meanwhile", [lambda: source.write_text("1 2 3 4")])
    with pytest.raises(DataError, match="train was changed while it was read"):
        read_records(Lines(NoOptions()), Data(train=source))


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
    with pytest.raises(DataError, match="holds no file"):
        fingerprint(tmp_path)

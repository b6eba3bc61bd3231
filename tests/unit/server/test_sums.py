"""Sums of updates that lie in memory, in files, or both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from hanse.arrays import only_arrays, to_record
from hanse.elements import PIECE, elements_of, lie_in_files, pieces_of
from hanse.flower import Envelope
from hanse.wire import body as bodies
from hanse.wire.assembler import Assembler
from hanse.wire.body import Spool
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, encode, make_header
from hanse_server.strategies.sums import TOGETHER, WeightedSum, write_wide
from torch import Tensor

Weighted = tuple[ArrayRecord, float]


def spooled(arrays: ArrayRecord, spool: Spool) -> ArrayRecord:
    """The same as a server has them that came over the link."""
    envelope = Envelope(
        message_id="a", run_id=1, src_node_id=1, dst_node_id=2, message_type="train"
    )
    encoded = encode(RecordDict({"arrays": arrays}))
    assembler = Assembler(make_header(encoded, envelope), Limits(), spool)
    for offset, data in chunks(encoded):
        assembler.add(offset, data)
    content = assembler.message().content
    assert isinstance(content, RecordDict)
    return only_arrays(content)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setattr(bodies, "IN_MEMORY", 0)
    return Spool(tmp_path)


def update(number: int) -> ArrayRecord:
    draws = torch.Generator().manual_seed(number)
    record = to_record(
        {
            "large": torch.randn(2 * PIECE + 5, generator=draws),
            "half": torch.randn(3, 4, generator=draws).bfloat16(),
            "count": torch.tensor(number + 1),
            "none": torch.empty(0, 3),
            "exact": torch.randn(PIECE, generator=draws),
        }
    )
    if number % 2:
        del record["half"]
    column_by_column = np.asfortranarray(torch.randn(4, 3, generator=draws).numpy())
    record["turned"] = Array(column_by_column)
    return record


def total(updates: Iterable[Weighted]) -> dict[str, Tensor]:
    sums = WeightedSum()
    for number, (each, weight) in enumerate(updates):
        sums.fold(each, weight, discount=1 / (1 + number))
    found = {}
    for name in update(0):
        slices = sums.take(name)
        assert slices is not None
        found[name] = torch.from_numpy(np.concatenate([each.copy() for each in slices]))
        assert sums.take(name) is None
    return found


@pytest.mark.parametrize("count", [1, 2, TOGETHER, TOGETHER + 1, 2 * TOGETHER + 3])
def test_updates_in_files_make_the_same_sum_as_in_memory_to_the_last_bit(
    count: int, spool: Spool
) -> None:
    weights = [0.3 + number for number in range(count)]
    in_memory = total((update(n), weight) for n, weight in enumerate(weights))
    in_files = total((spooled(update(n), spool), weight) for n, weight in enumerate(weights))
    mixed = total(
        (update(n) if n % 3 == 1 else spooled(update(n), spool), weight)
        for n, weight in enumerate(weights)
    )
    for name, each in in_memory.items():
        assert each.dtype == torch.float64
        assert torch.equal(each, in_files[name])
        assert torch.equal(each, mixed[name])
    by_hand = sum(
        elements_tensor(update(n)["large"]).double() * weight / (1 + n)
        for n, weight in enumerate(weights)
    )
    torch.testing.assert_close(in_memory["large"], by_hand, rtol=1e-14, atol=1e-14)


def elements_tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.concatenate([each.copy() for each in elements_of(array).pieces()]))


def test_no_update_in_a_file_is_mapped_or_lies_in_memory(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = [spooled(update(n), spool) for n in (0, 2, 4)]
    for each in updates:
        del each["turned"]  # what lies column by column is read as a whole
    monkeypatch.setattr(bodies._InFile, "mapped", None)
    sums = WeightedSum()
    for each in updates:
        assert lie_in_files(each)
        sums.fold(each, 1.0)

    found = {name: sums.take(name) for name in updates[0]}

    assert {name: sum(map(len, found[name] or ())) for name in found} == {
        name: update(0)[name].numpy().size if name != "half" else 12 for name in updates[0]
    }


def test_a_sum_is_there_only_once_more_updates_came_than_are_folded_together(spool: Spool) -> None:
    sums = WeightedSum()
    for number in range(TOGETHER - 1):
        sums.fold(spooled(update(number), spool), 1.0)
    assert not sums._sums
    sums.fold(spooled(update(0), spool), 1.0)
    assert not sums._waiting
    assert sums._sums.keys() == update(0).keys()


def test_the_sum_is_kept_in_float64() -> None:
    sums = WeightedSum()
    sums.fold(to_record({"w": torch.ones(1, dtype=torch.bfloat16)}), 1.0)
    sums.fold(to_record({"w": torch.full((1,), 2.0**-20, dtype=torch.bfloat16)}), 1.0)
    found = sums.take("w")
    assert found is not None
    (only,) = found
    assert only.dtype == np.float64
    assert only.item() == 1 + 2.0**-20
    assert sums.take("w") is None


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64]
)
@pytest.mark.parametrize("count", [0, 3, PIECE + 40_000])
def test_wide_numbers_are_rounded_to_what_the_model_has(dtype: torch.dtype, count: int) -> None:
    wide = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 9
    into = torch.empty(count, dtype=dtype)

    write_wide(into, pieces_of(wide.numpy()))

    expected = (wide if dtype.is_floating_point else wide.round()).to(dtype)
    if dtype == torch.float16:  # at once, where torch rounds to float32 first
        expected = torch.from_numpy(wide.numpy().astype(np.float16))
    assert torch.equal(into, expected)

"""Numbers of arrays, piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array
from hanse.arrays import to_array
from hanse.elements import PIECE, elements_of, numbers_of, pieces_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
SHAPES = [(), (0,), (3, 5), (PIECE,), (2, PIECE + 7)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_pieces_are_the_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(float(torch.Size(shape).numel())).reshape(shape) % 7 - 3).to(dtype)

    found = elements_of(to_array(tensor))

    pieces = [each.copy() for each in found.pieces()]
    assert (found.dtype, found.shape) == (dtype, shape)
    assert [len(each) for each in pieces[:-1]] == [PIECE] * (len(pieces) - 1)
    read = torch.from_numpy(np.concatenate(pieces)).to(dtype)
    assert torch.equal(read.reshape(shape), tensor)
    assert found.square_norm() == float(tensor.double().square().sum())


def test_each_bfloat16_is_read_as_what_it_is() -> None:
    every = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    (piece,) = elements_of(to_array(every)).pieces()
    assert torch.equal(torch.from_numpy(piece).nan_to_num(7.0), every.float().nan_to_num(7.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_shows_in_the_norm(value: float) -> None:
    tensor = torch.zeros(PIECE + 2)
    tensor[-1] = value
    assert not np.isfinite(elements_of(to_array(tensor)).square_norm())


def test_numbers_of_a_tensor_are_those_of_the_tensor_itself() -> None:
    for tensor in (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bfloat16)):
        numbers_of(tensor)[4] = 0x3F80
        assert tensor[1, 1] == (1.0 if tensor.dtype == torch.bfloat16 else 0x3F80)


def test_of_no_numbers_there_is_one_piece() -> None:
    assert [len(each) for each in pieces_of(np.empty(0))] == [0]


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no array"):
        elements_of(Array("float32", (2,), "numpy.ndarray", b"no numbers"))

"""Norms of large tensors, piece by piece."""

from __future__ import annotations

import pytest
import torch
from hanse.slices import ELEMENTS, square_distance, square_norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (ELEMENTS + 7,)])
def test_a_norm_is_that_of_all_pieces_and_changes_nothing(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = (torch.arange(float(torch.Size(shape).numel())).reshape(shape) % 7 - 3).to(dtype)
    before = tensor.clone()

    assert square_norm(tensor) == float(tensor.double().square().sum())
    assert square_distance(tensor, tensor) == 0.0
    assert square_distance(tensor, torch.zeros_like(tensor)) == square_norm(tensor)
    assert torch.equal(tensor, before)


def test_a_tensor_that_lies_in_strides_counts_in_full() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()
    assert not tensor.is_contiguous()
    assert square_norm(tensor) == float(tensor.square().sum())
    assert square_distance(tensor, torch.ones(4, 3)) == float((tensor - 1).square().sum())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_shows(value: float) -> None:
    tensor = torch.zeros(ELEMENTS + 2)
    tensor[-1] = value
    assert not torch.isfinite(torch.tensor(square_norm(tensor)))

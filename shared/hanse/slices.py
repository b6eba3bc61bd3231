"""Large tensors in slices.

An operation that needs another dtype on the way makes a copy of all that it is given. In slices
the copy is small, and stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 1 << 16


def slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat views of the same elements of contiguous ``tensors`` of one shape."""
    return zip(*(torch.split(tensor.view(-1), ELEMENTS) for tensor in tensors), strict=True)


def square_norm(tensor: Tensor) -> float:
    """The square of a tensor's L2 norm, in float64; contiguous or not."""
    flat = tensor.reshape(-1)
    parts = torch.split(flat, ELEMENTS)
    return sum((float(each.double().square_().sum()) for each in parts), start=0.0)

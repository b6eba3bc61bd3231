"""Large tensors in slices.

An operation that needs another dtype on the way makes a copy of all that it is given. In slices
the copy is small, and stays in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hanse.elements import elements_in

ELEMENTS = 32_000
"""torch works on fewer than 32,768 in one thread. For more it has another thread begin, and waits
for it: where all cores are busy, that took thirty times as long as the work itself."""


def slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat views of the same elements of contiguous ``tensors`` of one shape."""
    flat = tuple(tensor.view(-1) for tensor in tensors)
    if flat[0].numel() <= ELEMENTS:
        return iter((flat,))
    return zip(*(torch.split(each, ELEMENTS) for each in flat), strict=True)


def square_norm(tensor: Tensor) -> float:
    """The square of a tensor's L2 norm, in float64; contiguous or not."""
    if tensor.device.type == "cpu":
        return elements_in(tensor).square_norm()
    # All at once: a GPU makes no wide copy, and pieces would each be waited for.
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64).square())


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The L2 norm of all of them together, in float64."""
    return math.sqrt(sum(map(square_norm, tensors)))


def square_distance(some: Tensor, others: Tensor) -> float:
    """The square of the L2 norm of a difference, in float64; of one shape, contiguous or not."""
    pairs = slices(some.contiguous(), others.contiguous())
    return sum((square_norm(one.double() - other) for one, other in pairs), start=0.0)

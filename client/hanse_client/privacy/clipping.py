"""Clipping: how much of each record's gradient enters the sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from hanse.task import Examples
from torch import Tensor

MARGIN = 1e-3
"""Share of the clipping norm kept for rounding, far above what float32 needs."""

_CHUNK = 2**16


@dataclass(frozen=True)
class Clipping:
    """To ``norm`` in L2, less :data:`MARGIN` of it, so that rounding never exceeds ``norm``."""

    norm: float

    @property
    def bound(self) -> float:
        """The largest norm that is left as it is."""
        return self.norm * (1.0 - MARGIN)

    def factors(self, norms: Tensor) -> Tensor:
        """What each gradient is multiplied by, in [0, 1], for norms of shape (B,).

        An infinite norm gets 0: no factor brings such a gradient down to the clipping norm, one
        would make the whole sum NaN, and weights can be chosen so that a certain record has one.
        Who multiplies must still see to it that 0 times infinity is 0.
        """
        return (self.bound / norms).clamp_(max=1.0)

    def clipped(self, norms: Tensor) -> Tensor:
        """How many gradients lose something, shape ()."""
        return (norms > self.bound).sum()


def row_norms(rows: Tensor) -> Tensor:
    """The L2 norm of each record's part of ``rows``, shape (B, ...), as shape (B,).

    In chunks: torch's norm of one long row of float32 on a CPU adds it up number by number, and
    comes out 0.04 % low at ten million numbers, 1.1 % at a hundred million.
    """
    flat = rows if rows.dim() == 2 else rows.flatten(1)
    if flat.shape[1] <= _CHUNK:
        norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return norms
    chunks = [torch.linalg.vector_norm(chunk, dim=1) for chunk in torch.split(flat, _CHUNK, dim=1)]
    return torch.stack(chunks).square_().sum(dim=0).sqrt_()


def safe_norms(squares: Tensor, error: Tensor | None = None) -> Tensor:
    """Norms that the true ones exceed by half of :data:`MARGIN` at most; infinite for NaN.

    Args:
        squares: squared norms as they were computed, shape (B,).
        error: how much larger the true ones may be, shape (B,); None for no matter.
    """
    if error is not None:
        squares = torch.maximum(squares, (squares + error) / (1.0 + MARGIN))
    return squares.sqrt().nan_to_num_(nan=math.inf, posinf=math.inf)


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """What a backend makes of a part of a batch.

    Attributes:
        sums: the sum of the records' clipped gradients, one tensor for each trainable parameter,
            in their order and shapes; contiguous, and the receiver's to change.
        losses: shape (B,).
        norms: L2 norms of the gradients before clipping, shape (B,); where one is infinite, the
            record adds nothing to the sums.
        held: bytes that were held for the records besides what autograd keeps.
    """

    sums: tuple[Tensor, ...]
    losses: Tensor
    norms: Tensor
    held: int = 0

    def plus(self, other: ClippedSum) -> ClippedSum:
        """Of the records of both; takes over the sums of the first."""
        for total, addend in zip(self.sums, other.sums, strict=True):
            total.add_(addend)
        return replace(
            self,
            losses=torch.cat([self.losses, other.losses]),
            norms=torch.cat([self.norms, other.norms]),
        )


class Backend(Protocol):
    """A way to get the sum of the clipped gradients of a batch's records.

    Guarantee asked of each: adding or removing one record moves the sums, taken together, by at
    most the clipping norm in L2, for whatever weights and records.
    """

    @property
    def name(self) -> str:
        """What job files, logs and metrics call it."""
        ...

    def clipped_sum(self, part: Examples) -> ClippedSum:
        """The sum over ``part``, which holds at least one record."""
        ...

    def close(self) -> None:
        """Leave the model as it was."""
        ...

"""Updates folded into one sum, whatever their number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from hanse.arrays import size_of
from hanse.elements import PIECE, Numbers, elements_of, lie_in_files, numbers_of, pieces_of
from hanse.slices import slices
from hanse.threads import of_each
from numpy.typing import NDArray
from torch import Tensor

TOGETHER = 4
"""Updates in files that are folded at once: the sum is then read and written once for all of them.
Where no more come than that, there is never a sum of the size of the model."""

Wide = NDArray[np.float64]
"""Flat float64 numbers, so that the order in which updates arrive shows at most in the last bit of
a float32."""


class WeightedSum:
    """A sum of updates, each times its weight, in float64; the memory of one model at most.

    Attributes:
        weight: that of all updates.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: dict[str, Wide] = {}
        self._waiting: list[tuple[dict[str, Array], float]] = []  # each with its factor

    def fold(self, update: ArrayRecord, weight: float, discount: float = 1.0) -> None:
        """Add ``weight`` times ``update``, times ``discount`` for its age.

        A discount makes the mean smaller, as in FedBuff (Nguyen et al. 2022): were it divided out
        again, one late update alone would count in full.
        """
        self._waiting.append((dict(update), weight * discount))
        self.weight += weight
        if len(self._waiting) == TOGETHER or not lie_in_files(update):
            self._fold_waiting()

    def take(self, name: str) -> Iterator[Wide] | None:
        """The weighted sum of one tensor piece by piece, which is held here no more.

        Returns:
            As :meth:`hanse.elements.Elements.pieces`, in float64; they may be written to. None if
            no update had a tensor of this name.
        """
        sums = self._sums.pop(name, None)
        waiting = self._take_waiting(name)
        return None if sums is None and not waiting else _added(sums, waiting)

    def _fold_waiting(self) -> None:
        shapes = {name: each.shape for update, _ in self._waiting for name, each in update.items()}
        size = sum(size_of(each) for update, _ in self._waiting for each in update.values())
        for _ in of_each(lambda name: self._fold_array(name, shapes[name]), list(shapes), size):
            pass
        self._waiting = []

    def _fold_array(self, name: str, shape: tuple[int, ...]) -> None:
        waiting = self._take_waiting(name)
        if name in self._sums:
            for _ in _added(self._sums[name], waiting):
                pass
            return
        sums = np.empty(math.prod(shape))
        for into, each in zip(pieces_of(sums), _added(None, waiting), strict=True):
            into[:] = each
        self._sums[name] = sums

    def _take_waiting(self, name: str) -> list[tuple[Iterator[Numbers], float]]:
        """The pieces of a tensor of each update that waits, with its factor."""
        return [
            (elements_of(update.pop(name)).pieces(), factor)
            for update, factor in self._waiting
            if name in update
        ]


def _added(sums: Wide | None, updates: list[tuple[Iterator[Numbers], float]]) -> Iterator[Wide]:
    """Pieces of a sum, each after ``updates`` were added to it; of none, one that begins here."""
    factors = [factor for _, factor in updates]
    room = np.empty(PIECE)
    if sums is None:
        begun = np.empty(PIECE)
        for first, *others in zip(*(pieces for pieces, _ in updates), strict=True):
            into = begun[: len(first)]
            np.copyto(into, first)
            if factors[0] != 1.0:
                into *= factors[0]
            yield _add(into, others, factors[1:], room)
        return
    parts = zip(*(pieces for pieces, _ in updates), strict=True) if updates else repeat(())
    for into, each in zip(pieces_of(sums), parts, strict=False):
        yield _add(into, list(each), factors, room)


def _add(into: Wide, parts: list[Numbers], factors: list[float], room: Wide) -> Wide:
    for part, factor in zip(parts, factors, strict=True):
        if factor == 1.0:
            into += part
            continue
        times = room[: len(part)]
        np.copyto(times, part)
        times *= factor
        into += times
    return into


def write_wide(into: Tensor, pieces: Iterator[Wide]) -> None:
    """Write numbers into a contiguous tensor of any dtype, whole ones rounded."""
    at, numbers = 0, numbers_of(into)
    for piece in pieces:
        there = slice(at, at + len(piece))
        if into.dtype == torch.bfloat16:
            for some, wide in slices(into.view(-1)[there], torch.from_numpy(piece)):
                some.copy_(wide)
        else:
            exact = into.dtype.is_floating_point
            np.copyto(numbers[there], piece if exact else np.rint(piece), casting="unsafe")
        at += len(piece)

"""The numbers of an array, some at a time: of one that lies in a file, no more is in memory.

By numpy, which works on them in the thread that asks: torch has another thread begin, and waits
for it, where both may have better to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from hanse.arrays import BufferArray, read_tensor
from hanse.layout import LONGEST_HEADER, Layout, layout_of
from hanse.parts import Data, Part, Stored

PIECE = 1 << 16
"""Numbers of a piece; with a few copies in float64 they stay in the cache."""

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Elements:
    """What an array holds, to be read piece by piece.

    Attributes:
        dtype: of the numbers.
        shape: of the array.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    _source: Numbers | _File

    def pieces(self) -> Iterator[Numbers]:
        """Flat arrays of :data:`PIECE` numbers and a rest, in their order, to be read only.

        Each is good until the next. Of no numbers there is one piece, of none. bfloat16, which
        numpy does not have, comes as float32.

        Raises:
            WorkspaceError: if the file cannot be read.
        """
        source = self._source
        raw = source.pieces() if isinstance(source, _File) else pieces_of(source)
        return map(_wide, raw) if self.dtype == torch.bfloat16 else raw

    def square_norm(self) -> float:
        """The square of the L2 norm, in float64; infinite or NaN where a number is.

        Raises:
            WorkspaceError: if the file cannot be read.
        """
        room, square = np.empty(min(PIECE, math.prod(self.shape))), 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in self.pieces():
                wide = room[: len(piece)]
                np.copyto(wide, piece)
                wide *= wide
                square += float(wide.sum())
        return square


@dataclass(frozen=True)
class _File:
    """Numbers that lie in a file, in numpy's usual order.

    Attributes:
        start: the byte at which the first begins.
        dtype: numpy's, of bfloat16 that of its bits.
    """

    part: Stored
    start: int
    dtype: np.dtype[Any]

    def pieces(self) -> Iterator[Numbers]:
        left = (len(self.part) - self.start) // self.dtype.itemsize
        room, at = np.empty(min(PIECE, left), self.dtype), self.start
        while True:
            piece = room[:left]
            self.part.read_into(at, piece.view(np.uint8).data)
            yield piece
            left, at = left - len(piece), at + piece.nbytes
            if not left:
                return


def elements_in(tensor: torch.Tensor) -> Elements:
    """The numbers of a tensor on the CPU, where they lie if it is contiguous."""
    return Elements(tensor.dtype, tuple(tensor.shape), numbers_of(tensor))


def elements_of(array: Array) -> Elements:
    """The numbers of an array.

    Raises:
        ValueError: if the bytes do not make an array of the declared dtype and shape.
        WorkspaceError: if they lie in a file that cannot be read.
    """
    if isinstance(array, BufferArray):
        layout = layout_of(array, _head(array.part), len(array.part))
        if not layout.fortran:
            source = _numbers_in(array.part, layout)
            return Elements(layout.dtype, tuple(array.shape), source)
    return elements_in(read_tensor(array))


def _head(part: Part) -> bytes:
    if isinstance(part, Data):
        return bytes(memoryview(part)[:LONGEST_HEADER])
    head = bytearray(min(LONGEST_HEADER, len(part)))
    part.read_into(0, memoryview(head))
    return bytes(head)


def _numbers_in(part: Part, layout: Layout) -> Numbers | _File:
    dtype = _numpys(layout.dtype)
    if not isinstance(part, Data):
        return _File(part, layout.start, dtype)
    if len(part) == layout.start:
        return np.empty(0, dtype)
    return np.frombuffer(part, dtype, offset=layout.start)


@cache
def _numpys(dtype: torch.dtype) -> np.dtype[Any]:
    """As what numpy reads it: bfloat16 as its bits."""
    return numbers_of(torch.empty(0, dtype=dtype)).dtype


def numbers_of(tensor: torch.Tensor) -> Numbers:
    """A tensor as flat numbers where they lie, if it is contiguous; of bfloat16 its bits."""
    flat = tensor.detach().reshape(-1)
    bits = flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat
    numbers: Numbers = bits.numpy()
    return numbers.view(np.uint16) if bits is not flat else numbers


def pieces_of(numbers: Numbers) -> Iterator[Numbers]:
    """Flat numbers in the pieces of :meth:`Elements.pieces`, where they lie."""
    return (numbers[at : at + PIECE] for at in range(0, max(len(numbers), 1), PIECE))


def lie_in_files(arrays: ArrayRecord) -> bool:
    """Whether any of them does, so that it takes no memory to keep them for a while."""
    return any(
        isinstance(array, BufferArray) and not isinstance(array.part, Data)
        for array in arrays.values()
    )


def _wide(bits: Numbers) -> Numbers:
    """bfloat16 as float32, of which it is the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

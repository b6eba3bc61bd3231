"""The largest numbers of a tensor, and where they are; all others are 0.

What is left out, or told inexactly, is the sender's to keep and to add to what it sends next (Stich
et al. 2018, arXiv 1809.07599; Karimireddy et al. 2019, arXiv 1901.09847).

Laid out: how many numbers are told, uint32; their places; the numbers in the order of their places
as :mod:`hanse.encodings.blocks` packs 8-bit integers. Places take the shorter of two forms: for
each page of 65,536 how many of them are in it, uint32, and each one's place in its page, uint16,
ascending; or, where they are many, a bit for each place of the tensor, the first the highest.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hanse.encodings.blocks import pack8, unpack8

PAGE = 1 << 16
"""Places that two bytes tell apart."""

_COUNT, _PLACE = np.dtype("<u4"), np.dtype("<u2")
_Places = npt.NDArray[np.int64]


def pack(flat: Tensor, kept: float, randomness: torch.Generator) -> bytes:
    """The bytes of the ``kept`` share of ``flat`` (float32, finite) that is largest."""
    size, numbers = len(flat), flat.numpy()
    most = min(size, math.ceil(kept * size))
    places = np.argpartition(-np.abs(numbers), most - 1)[:most] if most else np.zeros(0, np.int64)
    places.sort()
    count = np.array(most, _COUNT).tobytes()
    return count + _pack_places(places, size) + pack8(flat[torch.from_numpy(places)], randomness)


def unpack(data: bytes, size: int) -> Tensor:
    """The ``size`` numbers of which some were packed, as float32, shape (size,).

    Raises:
        ValueError: if the bytes do not tell of places among so many, each once, or a number
            cannot be.
    """
    if len(data) < _COUNT.itemsize:
        raise ValueError(f"{len(data)} bytes are none of {size} numbers")
    count = int(np.frombuffer(data, _COUNT, count=1)[0])
    if count > size:
        raise ValueError(f"{count} numbers of {size} are told")
    start = _COUNT.itemsize
    end = start + _bytes_of_places(count, size)
    if len(data) < end:
        raise ValueError(f"{len(data)} bytes do not tell the places of {count} numbers")
    places = _unpack_places(data[start:end], count, size)
    values = unpack8(data[end:], count)
    flat = torch.zeros(size)
    flat[torch.from_numpy(places)] = values
    return flat


def _bytes_of_places(count: int, size: int) -> int:
    return min(_pages(size) * _COUNT.itemsize + count * _PLACE.itemsize, -(-size // 8))


def _pages(size: int) -> int:
    return -(-size // PAGE)


def _as_bits(count: int, size: int) -> bool:
    return _bytes_of_places(count, size) == -(-size // 8)


def _pack_places(places: _Places, size: int) -> bytes:
    if _as_bits(len(places), size):
        bits = np.zeros(size, np.bool_)
        bits[places] = True
        return np.packbits(bits).tobytes()
    counts = np.bincount(places // PAGE, minlength=_pages(size)).astype(_COUNT)
    return counts.tobytes() + (places % PAGE).astype(_PLACE).tobytes()


def _unpack_places(data: bytes, count: int, size: int) -> _Places:
    """The places that ``data``, of the right length, tells of: ascending, each once."""
    if _as_bits(count, size):
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        places: _Places = np.flatnonzero(bits).astype(np.int64)
        if len(places) != count:
            raise ValueError(f"{len(places)} places are told of {count} numbers")
    else:
        pages = _pages(size)
        counts = np.frombuffer(data, _COUNT, count=pages).astype(np.int64)
        if counts.sum() != count:
            raise ValueError(f"the pages tell of {counts.sum()} numbers, and there are {count}")
        places = np.frombuffer(data, _PLACE, offset=pages * _COUNT.itemsize).astype(np.int64)
        places += np.repeat(np.arange(pages) * PAGE, counts)
    if count and (places[-1] >= size or (np.diff(places) <= 0).any()):
        raise ValueError("a place is told twice, out of order, or beyond the tensor's end")
    return places

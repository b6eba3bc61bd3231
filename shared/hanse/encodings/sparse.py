"""The largest numbers of a tensor, and where they are; all others are 0.

What is left out is the sender's to keep and to add to what it sends next (Stich et al. 2018, arXiv
1809.07599; Karimireddy et al. 2019, arXiv 1901.09847).

Laid out: a scale, float32, the largest absolute value; for each page of 65,536 places how many are
kept, uint32; the place of each in its page, uint16, ascending; its value over the scale, float16.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

PAGE = 1 << 16
"""Places that two bytes tell apart."""

_SCALE, _COUNT, _PLACE, _VALUE = (np.dtype(each) for each in ("<f4", "<u4", "<u2", "<f2"))


def pack(flat: Tensor, kept: float) -> bytes:
    """The bytes of the ``kept`` share of ``flat`` (float32, finite) that is largest."""
    numbers = flat.numpy()
    most = min(len(numbers), math.ceil(kept * len(numbers)))
    places = np.argpartition(-np.abs(numbers), most - 1)[:most] if most else np.zeros(0, np.int64)
    places.sort()
    values = numbers[places]
    scale = np.abs(values).max(initial=0.0)
    counts = np.bincount(places // PAGE, minlength=-(-len(numbers) // PAGE))
    ratios = values / scale if scale > 0 else np.zeros_like(values)
    return b"".join(
        (
            np.array(scale, _SCALE).tobytes(),
            counts.astype(_COUNT).tobytes(),
            (places % PAGE).astype(_PLACE).tobytes(),
            ratios.astype(_VALUE).tobytes(),
        )
    )


def unpack(data: bytes, count: int) -> Tensor:
    """The ``count`` numbers of which some were packed, as float32, shape (count,).

    Raises:
        ValueError: if the bytes do not tell of places among so many, each once, or a number or
            the scale cannot be.
    """
    pages = -(-count // PAGE)
    head = _SCALE.itemsize + pages * _COUNT.itemsize
    each = _PLACE.itemsize + _VALUE.itemsize
    if len(data) < head or (len(data) - head) % each:
        raise ValueError(f"{len(data)} bytes are none of {count} numbers")
    scale = float(np.frombuffer(data, _SCALE, count=1)[0])
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError("the scale is negative, infinite or NaN")
    counts = np.frombuffer(data, _COUNT, count=pages, offset=_SCALE.itemsize).astype(np.int64)
    kept = (len(data) - head) // each
    if counts.sum() != kept or (counts > PAGE).any():
        raise ValueError(f"the pages tell of {counts.sum()} numbers, and there are {kept}")
    places = np.frombuffer(data, _PLACE, count=kept, offset=head).astype(np.int64)
    places += np.repeat(np.arange(pages) * PAGE, counts)
    if kept and (places[-1] >= count or (np.diff(places) <= 0).any()):
        raise ValueError("a place is told twice, out of order, or beyond the tensor's end")
    ratios = np.frombuffer(data, _VALUE, count=kept, offset=len(data) - kept * _VALUE.itemsize)
    if not (np.abs(ratios) <= 1).all():  # so that NaN is not
        raise ValueError("a number is not between -1 and 1 times the scale")
    flat = np.zeros(count, np.float32)
    flat[places] = ratios.astype(np.float32) * np.float32(scale)
    return torch.from_numpy(flat)

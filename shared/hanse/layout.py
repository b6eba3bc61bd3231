"""How the numbers of an array lie among its bytes, found without trust in either."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from flwr.app import Array

BFLOAT16 = "hanse.bfloat16"
"""The stype of raw little-endian bfloat16, as numpy has none."""

LONGEST_HEADER = 1024
"""Bytes among which numpy's header ends: what is taken for one is shorter."""

# What numpy writes before an array's bytes. Not numpy.load, which would open archives too,
# evaluate the text, and take memory for whatever shape it declares.
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)"
    rb"\{'descr': '(?P<dtype>[<>|=]?[A-Za-z][0-9]{1,4})', "
    rb"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[0-9, ]{0,600})\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Layout:
    """Where an array's numbers are.

    Attributes:
        start: the byte at which the first one begins.
        dtype: of each.
        fortran: whether the first index runs fastest.
    """

    start: int
    dtype: torch.dtype
    fortran: bool


def layout_of(array: Array, head: bytes, size: int) -> Layout:
    """The layout that an array's bytes declare, if it is the one that the array itself declares.

    Args:
        head: the first bytes of the array, :data:`LONGEST_HEADER` of them if there are so many.
        size: bytes of the whole.

    Raises:
        ValueError: if the bytes do not make an array of the declared dtype and shape.
    """
    shape = tuple(array.shape)
    if array.stype == BFLOAT16:
        _check_size(array.dtype, shape, size, torch.bfloat16.itemsize)
        return Layout(0, torch.bfloat16, fortran=False)
    return _layout(array.dtype, shape, _header(head), size)


def _header(head: bytes) -> bytes:
    """What numpy says is its header; all that there is, if it is none of numpy's."""
    length, start = (head[8:10], 10) if head[6:7] == b"\x01" else (head[8:12], 12)
    return head[: min(LONGEST_HEADER, start + int.from_bytes(length, "little"))]


@lru_cache(maxsize=1024)  # the arrays of all sites' updates are written alike
def _layout(dtype: str, shape: tuple[int, ...], header: bytes, size: int) -> Layout:
    written = _NPY.fullmatch(header)
    if written is None:
        raise ValueError(f"declared {dtype}{shape}, holds no array of numpy's")
    text = {name: part.decode() for name, part in written.groupdict().items()}
    holds = tuple(int(length) for length in text["shape"].split(",") if length.strip())
    try:
        found = np.dtype(text["dtype"])
        if holds != shape or str(found) != dtype:
            raise ValueError(f"declared {dtype}{shape}, holds {text['dtype']}{holds}")
        _check_size(dtype, shape, size - len(header), found.itemsize)
        like = torch.from_numpy(np.empty(0, found)).dtype
    except TypeError as foreign:
        raise ValueError(f"torch has no tensors of {text['dtype']}") from foreign
    return Layout(len(header), like, fortran=text["fortran"] == "True")


def _check_size(dtype: str, shape: tuple[int, ...], size: int, itemsize: int) -> None:
    """Hold a declared shape against the bytes that are there, before memory is taken for it."""
    too_long = any(length >= 2**62 for length in shape)  # beside a 0, for no bytes at all
    if too_long or size != math.prod(shape) * itemsize:
        raise ValueError(f"declared {dtype}{shape}, holds {size} bytes")

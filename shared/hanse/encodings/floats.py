"""Floats of two bytes: half precision, or float32's range with 8 bits of precision.

Numbers are rounded to the nearest. float16 ends at 65504: what lies beyond becomes infinite, which
its sender must look for.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(flat: Tensor, dtype: torch.dtype) -> bytes:
    """The bytes of ``flat`` as ``dtype``."""
    if len(flat) == 0:
        return b""
    return flat.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()


def unpack(data: bytes, count: int, *, dtype: torch.dtype) -> Tensor:
    """The ``count`` numbers that were packed, as float32, shape (count,).

    Raises:
        ValueError: if there are not so many.
    """
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{count} numbers of {dtype.itemsize} bytes, and {len(data)} bytes")
    if count == 0:
        return torch.empty(0)
    return torch.frombuffer(bytearray(data), dtype=dtype).to(torch.float32)

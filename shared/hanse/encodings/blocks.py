"""Integers of 8 or 4 bits with a scale for each block, rounded stochastically.

Each block of 256 numbers has the scale ``max |x| / levels``; a number becomes one of the two
multiples of it that it lies between, each as likely as it is near, so that the expectation is the
number itself (QSGD: Alistarh et al. 2017, arXiv 1610.02132), and the mean over sites errs less
than each of them.

Laid out: the scales as float32, then int8 from -127 to 127; or two numbers a byte, the first in
the lower half, as 1 to 15 for -7 to 7, and a last half that is left over as 8.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 256
"""Numbers that share a scale."""

_MOST8, _MOST4, _ZERO4 = 127, 7, 8
_SCALE = np.dtype("<f4")


def pack8(flat: Tensor, randomness: torch.Generator) -> bytes:
    """The bytes of ``flat`` (float32, finite) at one byte a number."""
    scales, steps = _quantised(flat, _MOST8, randomness)
    return _scale_bytes(scales) + steps.to(torch.int8).numpy().tobytes()


def pack4(flat: Tensor, randomness: torch.Generator) -> bytes:
    """The bytes of ``flat`` (float32, finite) at half a byte a number."""
    scales, steps = _quantised(flat, _MOST4, randomness)
    halves = torch.full((len(flat) + len(flat) % 2,), _ZERO4, dtype=torch.uint8)
    halves[: len(flat)] = (steps + _ZERO4).to(torch.uint8)
    packed = halves[0::2] | (halves[1::2] << 4)
    return _scale_bytes(scales) + packed.numpy().tobytes()


def unpack8(data: bytes, count: int) -> Tensor:
    """The ``count`` numbers that were packed, as float32, shape (count,).

    Raises:
        ValueError: if there are not so many, or one of them or a scale cannot be.
    """
    scales, codes = _parts(data, count, count)
    steps = torch.from_numpy(codes.view(np.int8).astype(np.float32))
    return _scaled(steps, scales, _MOST8)


def unpack4(data: bytes, count: int) -> Tensor:
    """The ``count`` numbers that were packed, as float32, shape (count,).

    Raises:
        ValueError: if there are not so many, or one of them or a scale cannot be.
    """
    scales, codes = _parts(data, count, (count + 1) // 2)
    halves = np.empty(2 * len(codes), np.float32)
    halves[0::2], halves[1::2] = codes & 0x0F, codes >> 4
    if count % 2 and halves[count] != _ZERO4:
        raise ValueError("the half of a byte that is left over is not empty")
    return _scaled(torch.from_numpy(halves[:count] - _ZERO4), scales, _MOST4)


def _quantised(flat: Tensor, most: int, randomness: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scales, shape (blocks,), and whole numbers from -most to most, shape (len(flat),)."""
    blocks = -(-len(flat) // BLOCK)
    padded = torch.zeros(blocks * BLOCK)
    padded[: len(flat)] = flat
    rows = padded.view(blocks, BLOCK)
    scales = rows.abs().amax(dim=1, keepdim=True) / most if blocks else torch.zeros(0, 1)
    steps = rows / scales.where(scales > 0, torch.ones(()))
    draws = torch.rand(rows.shape, generator=randomness)
    # The largest of a block may be a hair above `most` in float32.
    steps = (steps + draws).floor_().clamp_(-most, most)
    return scales.reshape(-1), steps.reshape(-1)[: len(flat)]


def _scale_bytes(scales: Tensor) -> bytes:
    return scales.numpy().astype(_SCALE).tobytes()


def _parts(data: bytes, count: int, size: int) -> tuple[Tensor, np.ndarray]:
    """The scales, and ``size`` bytes of numbers."""
    blocks = -(-count // BLOCK)
    if len(data) != blocks * _SCALE.itemsize + size:
        raise ValueError(
            f"{count} numbers in blocks of {BLOCK} take {blocks * _SCALE.itemsize + size} bytes, "
            f"and there are {len(data)}"
        )
    scales = np.frombuffer(data, _SCALE, count=blocks).astype(np.float32)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError("a block's scale is negative, infinite or NaN")
    return torch.from_numpy(scales), np.frombuffer(data, np.uint8, offset=len(data) - size)


def _scaled(steps: Tensor, scales: Tensor, most: int) -> Tensor:
    if bool((steps.abs() > most).any()):
        raise ValueError(f"a number is not one of -{most} to {most}")
    whole, rest = len(steps) // BLOCK * BLOCK, len(steps) % BLOCK
    steps[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
    if rest:
        steps[whole:].mul_(scales[-1])
    return steps

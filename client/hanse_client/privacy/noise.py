"""Where the noise comes from: a stream cipher keyed by the operating system."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

BLOCK = 2**15
"""Values drawn at once: they stay in a CPU's cache, and memory does not grow with the model."""

_ZEROS = bytes(8 * BLOCK)
_FRACTION = 2**52 - 1
_ONE = 0x3FF << 52  # the exponent of floats in [1, 2)
_TWO = torch.tensor(2.0, dtype=torch.float64)


def fresh_seed() -> int:
    """63 bits from the operating system, for whatever nobody else may foresee."""
    return int.from_bytes(os.urandom(8), "big") >> 1


class NoiseSource(Protocol):
    """Independent standard normals."""

    def standard_normals(self, count: int) -> Tensor:
        """``count`` fresh values, float64, on the CPU, shape (count,)."""
        ...


class SecureNoise:
    """Standard normals from AES-256 in counter mode, by Box and Muller's transform in float64.

    Guarantee: who does not hold the key cannot tell the uniform words below the normals from
    truly random ones; the key is 256 bits of ``os.urandom``, an instance's own, and never leaves
    it. There is no seed. torch's own generators do not serve: the CPU's uses 32 bits of its seed,
    which can all be tried in hours, and CUDA's Philox is no cipher.

    A process forked from this one draws a key of its own at its first use, so that parent and
    child never repeat each other's noise. An instance cannot be copied or pickled.

    The uniforms are multiples of one in 2**52; so the largest normal is 8.49, which a true one
    passes once in 10**16 draws.
    """

    def __init__(self) -> None:
        self._stream = bytearray(8 * BLOCK)
        self._rekey()

    def standard_normals(self, count: int) -> Tensor:
        """``count`` fresh values, float64, on the CPU, shape (count,)."""
        blocks = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
        if len(blocks) == 1:
            return self._block(count)
        return torch.cat([torch.empty(0, dtype=torch.float64), *map(self._block, blocks)])

    def _block(self, count: int) -> Tensor:
        pairs = (count + 1) // 2
        words = self._words(2 * pairs)
        # A random fraction behind the exponent of 1 is uniform in [1, 2).
        uniforms = words.bitwise_and_(_FRACTION).bitwise_or_(_ONE).view(torch.float64)
        radius, angle = uniforms[:pairs], uniforms[pairs:].mul_(2.0 * math.pi)
        torch.sub(_TWO, radius, out=radius)  # in (0, 1]: no logarithm of 0
        radius.log_().mul_(-2.0).sqrt_()
        normals = torch.empty(2, pairs, dtype=torch.float64)
        torch.cos(angle, out=normals[0])
        torch.sin(angle, out=normals[1])
        return normals.mul_(radius).view(-1)[:count]

    def _words(self, count: int) -> Tensor:
        """64-bit words of the key stream, in a buffer that the next ones will overwrite."""
        if self._process != os.getpid():
            self._rekey()
        stream = memoryview(self._stream)[: 8 * count]
        self._cipher.update_into(memoryview(_ZEROS)[: 8 * count], stream)
        return torch.frombuffer(stream, dtype=torch.int64)

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._cipher: CipherContext = Cipher(
            algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))
        ).encryptor()


def add_noise(tensors: Sequence[Tensor], deviation: float, source: NoiseSource) -> None:
    """Add to each value of contiguous tensors, in place, noise of that standard deviation.

    The noise is drawn on the CPU wherever the tensors are: for a model on a GPU it crosses the
    bus, 8 bytes a weight, which costs less than a step, and is the same cipher's. Sum and noise
    are added in float64 and rounded once (in float32 on a device without float64), so that the
    grid of floats that noise falls on does not tell the sum beneath it.
    """
    flat = [tensor.detach().view(-1) for tensor in tensors]
    left = sum(map(len, flat))
    drawn = torch.empty(0)
    for values in flat:
        start = 0
        while start < len(values):
            if len(drawn) == 0:
                drawn = source.standard_normals(min(BLOCK, left)).to(_precise(values.device))
                left -= len(drawn)
            part = values[start : start + len(drawn)]
            noise, drawn = drawn[: len(part)], drawn[len(part) :]
            noise = noise.to(values.device)
            part.copy_(part.to(noise.dtype).add_(noise, alpha=deviation))
            start += len(part)


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64

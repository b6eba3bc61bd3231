"""Where the noise comes from: a stream cipher keyed by the operating system."""

from __future__ import annotations

import math
import os
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

BLOCK = 2**16
"""Values drawn at once: half a MiB of float64, so that memory does not grow with the model."""

_MANTISSA = 2**53
_ZEROS = bytes(8 * BLOCK)


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

    Values are multiples of one in 2**53 before the transform; the largest is 8.57, which a
    normal passes once in 10**17 draws.
    """

    def __init__(self) -> None:
        self._rekey()

    def standard_normals(self, count: int) -> Tensor:
        """``count`` fresh values, float64, on the CPU, shape (count,)."""
        if self._process != os.getpid():
            self._rekey()
        pairs = (count + 1) // 2
        words = torch.frombuffer(self._random_bytes(16 * pairs), dtype=torch.int64)[: 2 * pairs]
        uniforms = words.bitwise_and_(_MANTISSA - 1).double().add_(1.0).mul_(1 / _MANTISSA)
        radius = uniforms[:pairs].log_().mul_(-2.0).sqrt_()  # of uniforms in (0, 1]: no log of 0
        angle = uniforms[pairs:].mul_(2.0 * math.pi)
        normals = torch.empty(2, pairs, dtype=torch.float64)
        torch.cos(angle, out=normals[0])
        torch.sin(angle, out=normals[1])
        return normals.mul_(radius).view(-1)[:count]

    def _random_bytes(self, size: int) -> bytearray:
        """``size`` bytes of the key stream, and a block of the cipher's to spare."""
        zeros = memoryview(_ZEROS)[:size] if size <= len(_ZEROS) else bytes(size)
        stream = bytearray(size + 16)
        self._cipher.update_into(zeros, stream)
        return stream

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._cipher: CipherContext = Cipher(
            algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))
        ).encryptor()


def add_noise(tensor: Tensor, deviation: float, source: NoiseSource) -> None:
    """Add to each value of a contiguous tensor, in place, noise of that standard deviation.

    The noise is drawn on the CPU wherever the tensor is: for a model on a GPU it crosses the bus,
    8 bytes a weight, which costs less than a step, and is the same cipher's. Sum and noise are
    added in float64 and rounded once (in float32 on a device without float64), so that the grid
    of floats that noise falls on does not tell the sum beneath it.
    """
    flat = tensor.detach().view(-1)
    for start in range(0, len(flat), BLOCK):
        part = flat[start : start + BLOCK]
        noise = source.standard_normals(len(part))
        if tensor.device.type == "mps":
            noise = noise.float()
        part.add_(noise.to(tensor.device), alpha=deviation)

"""Where the noise comes from: a stream cipher keyed by the operating system."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

BLOCK = 2**17
"""Values drawn at once: they stay in a CPU's cache, and memory does not grow with the model."""

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
        self._cipher.update_into(stream, stream)  # what is enciphered there is no matter
        return torch.frombuffer(stream, dtype=torch.int64)

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._cipher: CipherContext = Cipher(
            algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))
        ).encryptor()


def noised(sums: Sequence[Tensor], deviation: float, divisor: float, source: NoiseSource) -> None:
    """Make each value of contiguous tensors, in place, its sum with noise over ``divisor``.

    The noise is drawn on the CPU wherever the tensors are: for a model on a GPU it crosses the
    bus, 8 bytes a weight, which costs less than a step, and is the same cipher's. Sum and noise
    are added in float64 and rounded once (in float32 on a device without float64), so that the
    grid of floats that noise falls on does not tell the sum beneath it.

    Args:
        deviation: standard deviation of the noise in each value of the sum.
    """
    device = sums[0].device
    precise = torch.float32 if device.type == "mps" else torch.float64
    exact = torch.empty(min(BLOCK, sum(map(torch.numel, sums))), dtype=precise, device=device)
    for pieces in _blocks(sums):
        sizes = [piece.numel() for piece in pieces]
        total = exact[: sum(sizes)]
        values = torch.split(total, sizes)
        for value, piece in zip(values, pieces, strict=True):
            value.copy_(piece)
        noise = source.standard_normals(total.numel()).to(device, precise)
        total.add_(noise, alpha=deviation).mul_(1.0 / divisor)
        for value, piece in zip(values, pieces, strict=True):
            piece.copy_(value)


def _blocks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """All values of ``tensors`` as pieces of one dimension, at most :data:`BLOCK` at once."""
    pieces: list[Tensor] = []
    size = 0
    for tensor in tensors:
        for piece in torch.split(tensor.view(-1), BLOCK):
            if size + piece.numel() > BLOCK:
                yield pieces
                pieces, size = [], 0
            pieces.append(piece)
            size += piece.numel()
    yield pieces

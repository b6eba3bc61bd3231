"""Where the noise comes from: a stream cipher keyed by the operating system."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from hanse_client.device import widest_float

BLOCK = 2**17
"""Values added at once: they stay in a CPU's cache, and memory does not grow with the model."""

GPU_BLOCK = 2**22
"""Likewise on a GPU, where a few dozen operations are begun for each block."""

SLICE = 2**16 - 2
"""Values drawn at once: torch works on half of them in one thread, so that several can draw."""

_FRACTION = 2**52 - 1
_ONE = 0x3FF << 52  # the exponent of floats in [1, 2)


def fresh_seed() -> int:
    """63 bits from the operating system, for whatever nobody else may foresee."""
    return int.from_bytes(os.urandom(8), "big") >> 1


class NoiseSource(Protocol):
    """Independent standard normals."""

    def standard_normals(self, count: int) -> Tensor:
        """``count`` fresh values, float64, shape (count,), the caller's to change; on the CPU, or
        on the device that they will be used on."""
        ...


class SecureNoise(threading.local):
    """Standard normals from AES-256 in counter mode, by Box and Muller's transform in float64.

    Guarantee: who does not hold the key cannot tell the uniform words below the normals from
    truly random ones; the key is 256 bits of ``os.urandom``, an instance's own, and never leaves
    it. There is no seed. torch's own generators do not serve: the CPU's uses 32 bits of its seed,
    which can all be tried in hours, and CUDA's Philox is no cipher.

    Each thread draws under a key of its own, and a process forked from this one draws a key of
    its own at its first use: no two ever repeat each other's noise. An instance cannot be copied
    or pickled.

    The uniforms are multiples of one in 2**52; so the largest normal is 8.49, which a true one
    passes once in 10**16 draws.
    """

    def __init__(self) -> None:  # once in each thread that uses the instance
        self._words = torch.zeros(SLICE, dtype=torch.int64)
        self._rekey()

    def standard_normals(self, count: int) -> Tensor:
        """``count`` fresh values, float64, on the CPU, shape (count,)."""
        normals = torch.empty(count, dtype=torch.float64)
        for part in torch.split(normals, SLICE):
            self._draw(part)
        return normals

    def words(self, count: int, *, pinned: bool) -> Tensor:
        """Random words, int64, on the CPU, for :func:`box_muller` to make ``count`` values of.

        Args:
            pinned: in memory that a GPU can fetch them from by itself.
        """
        words = torch.empty(2 * _pairs(count), dtype=torch.int64, pin_memory=pinned)
        self._fill(words)
        return words

    def _draw(self, normals: Tensor) -> None:
        words = self._words[: 2 * _pairs(normals.numel())]
        self._fill(words)
        box_muller(words, normals)

    def _fill(self, words: Tensor) -> None:
        """Fill with the key stream."""
        if self._process != os.getpid():
            self._rekey()
        stream = words.numpy().data.cast("B")
        self._cipher.update_into(stream, stream)  # what is enciphered there is no matter

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._cipher: CipherContext = Cipher(
            algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))
        ).encryptor()


def box_muller(words: Tensor, normals: Tensor) -> None:
    """Make standard normals of uniform words, by Box and Muller's transform in float64.

    Args:
        words: int64, two for each two normals, on the normals' device; changed in place.
        normals: float64, overwritten.
    """
    count, pairs = normals.numel(), len(words) // 2
    # A random fraction behind the exponent of 1 is uniform in [1, 2).
    uniforms = words.bitwise_and_(_FRACTION).bitwise_or_(_ONE).view(torch.float64)
    radius, angle = uniforms.view(2, pairs)
    radius.neg_().add_(2.0)  # in (0, 1]: no logarithm of 0
    radius.log_().mul_(-2.0).sqrt_()
    angle.mul_(2.0 * math.pi)
    torch.cos(angle, out=normals[:pairs]).mul_(radius)
    normals[pairs:].copy_(angle.sin_().mul_(radius)[: count - pairs])


def _pairs(count: int) -> int:
    return (count + 1) // 2


def noised(sums: Sequence[Tensor], deviation: float, divisor: float, source: NoiseSource) -> None:
    """Make each value of contiguous tensors, in place, its sum with noise over ``divisor``.

    The cipher runs on the CPU wherever the tensors are: for a model on a GPU its words cross the
    bus, 8 bytes a weight (:class:`hanse_client.privacy.ahead.NoiseAhead`). Sum and noise are
    added in float64 and rounded once (in float32 on a device without float64), so that the
    grid of floats that noise falls on does not tell the sum beneath it.

    Args:
        deviation: standard deviation of the noise in each value of the sum.
    """
    precise = widest_float(sums[0].device)
    for pieces in _blocks(sums):
        sizes = [piece.numel() for piece in pieces]
        scaled = source.standard_normals(sum(sizes)).mul_(deviation / divisor)
        scaled = scaled.to(pieces[0].device, precise)
        if scaled.is_cuda:  # to begin an operation for each piece takes longer than to do it
            rounded = scaled.add_(torch.cat(pieces), alpha=1.0 / divisor).to(pieces[0].dtype)
            torch._foreach_copy_(pieces, torch.split(rounded, sizes))
            continue
        for piece, part in zip(pieces, torch.split(scaled, sizes), strict=True):
            piece.copy_(part.add_(piece.to(precise), alpha=1.0 / divisor))


def _blocks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """All values of ``tensors`` as pieces of one dimension, at most a block at once."""
    block = GPU_BLOCK if tensors[0].device.type == "cuda" else BLOCK
    pieces: list[Tensor] = []
    size = 0
    for tensor in tensors:
        flat = tensor.view(-1)
        for piece in (flat,) if flat.numel() <= block else torch.split(flat, block):
            if size + piece.numel() > block:
                yield pieces
                pieces, size = [], 0
            pieces.append(piece)
            size += piece.numel()
    yield pieces


def draws(tensors: Sequence[Tensor]) -> list[int]:
    """How many values :func:`noised` asks its source for, call by call, for such ``tensors``."""
    return [sum(piece.numel() for piece in pieces) for pieces in _blocks(tensors)]

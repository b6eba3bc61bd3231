"""Where the noise comes from."""

from __future__ import annotations

import os

import torch


def fresh_seed() -> int:
    """63 bits from the operating system, for whatever nobody else may foresee."""
    return int.from_bytes(os.urandom(8), "big") >> 1


def noise_generator(device: torch.device) -> torch.Generator:
    """A generator on ``device`` that no job, message or earlier generator determines.

    torch's CPU generator uses 32 bits of its seed, which is fewer than the guarantee deserves.
    """
    return torch.Generator(device).manual_seed(fresh_seed())

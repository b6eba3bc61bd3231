"""Poisson sampling: each record enters each batch on its own, with the same probability."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def poisson_batches(records: int, sampling_rate: float, steps: int) -> Iterator[Tensor]:
    """``steps`` batches as indices below ``records``; any of them may be empty.

    A size drawn from Binomial(records, sampling_rate) and then a subset of that size, all
    subsets alike, has the distribution of one coin for each record. The randomness is the
    operating system's: amplification by sampling holds only against who cannot tell the batches.
    """
    random = np.random.default_rng(int.from_bytes(os.urandom(32), "big"))
    for _ in range(steps):
        size = random.binomial(records, sampling_rate)
        yield torch.from_numpy(random.choice(records, size, replace=False, shuffle=False))

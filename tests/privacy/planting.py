"""Bugs to plant, and the tests that must catch them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CAUGHT = (AssertionError, pytest.fail.Exception)
"""What a test raises that fails."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What a bug is planted in, and what a test may need."""

    patch: pytest.MonkeyPatch
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A mistake that would lose the guarantee without a word.

    Attributes:
        plant: puts it into the code, until the end of the test.
        guard: a test of the suite, or one case of it, that passes without the bug.
    """

    name: str
    plant: Callable[[Ground], None]
    guard: Callable[[Ground], None]


def repeatable(patch: pytest.MonkeyPatch, seed: int = 1) -> None:
    """The operating system's randomness from a seed, which only tests can have."""
    patch.setattr(os, "urandom", random.Random(seed).randbytes)

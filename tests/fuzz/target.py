"""What is fuzzed: a decoder, inputs that it takes, and how to change them in its own terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hanse.errors import HanseError

Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One decoder.

    Attributes:
        run: takes an input; a HanseError is its right to refuse, anything else a finding.
        seeds: inputs to begin with, made by code from valid objects.
        mutate: changes an input in the terms of its format, so that what is behind checksums
            and parsers is reached; changes of bytes come from the fuzzer.
        close: gives back what it holds open.
    """

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    mutate: Mutate | None = None
    close: Callable[[], object] = lambda: None


def each(*attempts: Callable[[], object]) -> None:
    """Make all attempts. If all are refused, so is the input."""
    refusals: list[HanseError] = []
    for attempt in attempts:
        try:
            attempt()
        except HanseError as refused:
            refusals.append(refused)
    if len(refusals) == len(attempts):
        raise refusals[-1]


Open = Callable[[Path], Target]
"""Opens a target; the folder is its own, empty, and best in memory."""

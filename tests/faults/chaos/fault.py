"""What a fault is: when it is to befall whom, and how it acts."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

Acting = Generator[float, None, None]
SOON = 0.001
"""Yielded by a fault that still waits for its moment: seconds between two looks."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is to happen.

    Attributes:
        kind: name of it in :data:`KINDS`.
        victim: the server, or a site.
        round: it begins once this round is under way.
        wait: seconds from then on.
        seconds: how long it lasts.
        amount: what more there is to choose, in [0, 1).
    """

    kind: str
    victim: str
    round: int
    wait: float
    seconds: float
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}({self.victim})@{self.round}"

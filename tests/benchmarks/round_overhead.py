"""What a round costs beside training: two sites, mutual TLS, a model of 0.39 MB that is sent back.

Each contestant runs real processes on loopback, in turns with the others; a figure is the median
over all rounds but the first of each federation. ``round_s`` is the time from the round's start
to the mean of the replies, ``whole_s`` that from a round's start to the next one's: Hanse's has a
durable checkpoint in it. ``first_s`` is the first round. ``over_floor`` and ``over_hanse`` are
ratios of ``round_s``.
"""

from __future__ import annotations

from typing import Any

from tests.benchmarks.federations.case import Case
from tests.benchmarks.federations.contest import ALL, absent, compare

CONTESTANTS = ALL
CASE = Case(sites=2, megabytes=0.39, rounds=20)
REPEATS = 2


def rows(case: Case = CASE, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """One row a contestant."""
    found = list(compare(case, CONTESTANTS, repeats=repeats))
    return [{name: row[name] for name in row if name != "peak_models"} for row in found]


def notes() -> list[str]:
    """Who is left out."""
    return absent(CONTESTANTS)

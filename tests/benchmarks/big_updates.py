"""Rounds with large models: seconds, and the server's peak memory in models, with no training.

As in ``round_overhead``, with up to 1 GB and up to 32 sites. ``peak_models`` is what the server's
side used at most in a round, above what it used before there was a model, over the model's size.
A case is left out where the machine has not the memory for its sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.benchmarks.federations.case import Case
from tests.benchmarks.federations.contest import (
    FLOOR,
    FLOWER,
    HANSE,
    NVFLARE_SHORT,
    Contestant,
    absent,
    compare,
)
from tests.benchmarks.federations.memory import available_bytes

EVERYONE = (FLOOR, HANSE, FLOWER, NVFLARE_SHORT)
OURS = (FLOOR, HANSE)  # a round of a peer would take many minutes

Cases = Sequence[tuple[Case, Sequence[Contestant]]]
CASES: Cases = (
    (Case(sites=2, megabytes=100, rounds=3), EVERYONE),
    (Case(sites=4, megabytes=100, rounds=2), EVERYONE),
    (Case(sites=8, megabytes=100, rounds=2), EVERYONE),
    (Case(sites=32, megabytes=50, rounds=2), OURS),
    (Case(sites=2, megabytes=1000, rounds=2), OURS),
    (Case(sites=4, megabytes=1000, rounds=2), OURS),
    (Case(sites=8, megabytes=1000, rounds=2), OURS),
)
REPEATS = 1
MODELS_A_SITE, MODELS_A_SERVER = 4, 8  # what a contestant may hold at once, by a wide margin


def rows(cases: Cases = CASES) -> list[dict[str, Any]]:
    """A row for each case and contestant."""
    return [
        {"sites": case.sites, "mb": case.megabytes, **row}
        for case, contestants in cases
        if fits(case)
        for row in compare(case, contestants, repeats=REPEATS)
    ]


def notes() -> list[str]:
    """Who and what is left out."""
    too_large = [
        f"{case.sites} sites of {case.megabytes:g} MB are left out: {_needed(case) / 1e9:.0f} GB "
        f"of memory may be needed, and {available_bytes() / 1e9:.0f} GB are available."
        for case, _ in CASES
        if not fits(case)
    ]
    return absent(EVERYONE) + too_large


def fits(case: Case) -> bool:
    """Whether this machine has the memory for a case."""
    return _needed(case) < available_bytes()


def _needed(case: Case) -> int:
    return (MODELS_A_SITE * case.sites + MODELS_A_SERVER) * case.model_bytes

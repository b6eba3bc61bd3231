"""The regression band: within what limits the statistics of a correct run lie.

A correct run and n simulated ones are n + 1 alike: that a statistic of the one lies above all of
the n, or below all of them, has a probability of at most 2 / (n + 1), whatever its distribution.
So the band is from the least to the most of the simulated, and the probability that any of k
statistics of a correct engine leaves its band is at most 2 k / (n + 1): with 5 and 20,000, one in
2,000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hanse.privacy.accounting import Charge

from hanse_client.canaries.bound import epsilon_at_least
from hanse_client.canaries.design import Design, simulate
from hanse_client.canaries.scores import Floats, Statistics, measure, right_guesses

_AT_ONCE = 500  # runs, for the sake of memory
_PILOTS = 500
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)  # of the canaries, to be guessed

CLIPPED_BELOW = 2e-3
"""How far below the clipping norm an engine may clip, relatively, to allow for rounding."""

CLIPPED_ABOVE = 1e-4
"""How far above it rounding may bring the sum of many clipped records, relatively."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The limits of a statistic, both inclusive."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def fixed_guesses(charge: Charge, design: Design, *, claimed: float, delta: float) -> int:
    """The number of guesses that proves most of the ideal mechanism, in the median of runs.

    It is decided by simulation, before the run and without it: had it been chosen by the run's
    own scores, the bound's confidence would not hold. Few guesses prove little even if all of
    them are right; so they are as many, where there are, as can refute the claim.
    """
    scores = simulate(charge, design, _PILOTS)

    def proved(guesses: int, right: int) -> float:
        return epsilon_at_least(canaries=design.canaries, guesses=guesses, right=right, delta=delta)

    def in_the_median(guesses: int) -> float:
        return proved(guesses, int(np.median(right_guesses(scores, guesses))))

    choices = [2 * round(share * design.canaries / 2) for share in _SHARES]
    able = [guesses for guesses in choices if proved(guesses, guesses) > claimed]
    # From the most down: where nothing can be proved, all of them are guessed.
    return max(able or choices, key=in_the_median)


def simulated(charge: Charge, design: Design, guesses: int, runs: int) -> Statistics:
    """The statistics of ``runs`` runs of the ideal mechanism."""
    parts = [
        measure(simulate(charge, design, min(_AT_ONCE, runs - done)), guesses)
        for done in range(0, runs, _AT_ONCE)
    ]
    return Statistics(
        **{name: np.concatenate([dict(part)[name] for part in parts]) for name, _ in parts[0]}
    )


def bands(statistics: Statistics) -> dict[str, Band]:
    """The band of each statistic by name."""
    return {
        name: _clipped(values) if name in ("gap", "fillers") else _all(values)
        for name, values in statistics
    }


def false_alarms(statistics: Statistics, refuting_guesses: int) -> float:
    """The probability that a correct engine does not pass: out of a band, or beyond the claim.

    Args:
        statistics: of simulated runs.
        refuting_guesses: so many right guesses prove more than is claimed; by the bound's
            confidence, correct engines get there in one audit of 20 at most, and hardly ever
            where the claim is not close to 0.
    """
    leave_a_band = 2 * sum(1 for _ in statistics)
    beyond = int((statistics.right >= refuting_guesses).sum())
    return (leave_a_band + beyond + 1) / (len(statistics.right) + 1)


def _all(values: Floats) -> Band:
    return Band(low=float(values.min()), high=float(values.max()))


def _clipped(values: Floats) -> Band:
    band, expected = _all(values), float(values.mean())
    return Band(low=band.low - CLIPPED_BELOW * expected, high=band.high + CLIPPED_ABOVE * expected)

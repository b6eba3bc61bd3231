"""The design of an audit: how many canaries, and what an ideal mechanism makes of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from hanse.privacy.accounting import Charge
from numpy.typing import NDArray

from hanse_client.canaries.scores import Scores

GROUPS = 100
"""Groups of fillers: enough for their spread to be known to a few parts in a hundred."""

_BATCH = 256  # records of a step, in expectation, within the limits below
_SMALLEST_GROUP, _LARGEST_GROUP = 10, 200


@dataclass(frozen=True, kw_only=True)
class Design:
    """The records of an audit.

    Attributes:
        canaries: records that are each in the data set by a fair coin, with a direction each.
        group: records in each of the :data:`GROUPS` groups of fillers, which are always in;
            those of a group share a direction.
    """

    canaries: int
    group: int

    @classmethod
    def of(cls, canaries: int, sampling_rate: float) -> Design:
        """The design whose batches at ``sampling_rate`` are of some 256 records, within reason."""
        group = round((_BATCH / sampling_rate - canaries / 2) / GROUPS)
        return cls(canaries=canaries, group=min(max(group, _SMALLEST_GROUP), _LARGEST_GROUP))

    @property
    def directions(self) -> int:
        """One for each canary, and one for each group."""
        return self.canaries + GROUPS

    def toss(self, runs: int = 1) -> NDArray[np.bool_]:
        """Which canaries are in, (runs, canaries): fair coins of the operating system's."""
        return fresh_generator().random((runs, self.canaries)) < 0.5


def fresh_generator() -> np.random.Generator:
    """A generator that nobody can foresee: who could tell the coins could pass any audit."""
    return np.random.default_rng(int.from_bytes(os.urandom(32), "big"))


def simulate(charge: Charge, design: Design, runs: int) -> Scores:
    """Scores as the mechanism of ``charge`` has them, without any of the engine's code.

    Each step draws each record with the sampling rate on its own, and moves along each direction
    by the number of its records that were drawn, plus Gaussian noise of the noise multiplier's
    standard deviation, all in clipping norms. Over the steps that is a binomial and a Gaussian.
    """
    random = fresh_generator()
    deviation = charge.noise_multiplier * np.sqrt(charge.steps)
    included = design.toss(runs)
    drawn = random.binomial(charge.steps, charge.sampling_rate, included.shape)
    members = random.binomial(charge.steps * design.group, charge.sampling_rate, (runs, GROUPS))
    return Scores(
        included=included,
        canaries=included * drawn + deviation * random.standard_normal(included.shape),
        groups=members + deviation * random.standard_normal(members.shape),
    )

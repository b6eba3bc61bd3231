"""Means of bounded values of records, with Gaussian noise: how metrics leave under the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hanse.evaluation import clipped_shares
from torch import Tensor

from hanse_client.privacy.noise import NoiseSource
from hanse_client.release import CLIPPED_FRACTION, TRAIN_LOSS, NoisedMetrics

GRAIN = 2.0**-10
"""Sums are rounded to this share of the noise's standard deviation, after it was added."""


def noised_means(
    metrics: NoisedMetrics,
    sums: Mapping[str, float],
    records: float,
    *,
    noise: NoiseSource,
    releases: int = 1,
) -> dict[str, float]:
    """The mean of each metric, from sums over records that get noise first.

    Guarantee: a record adds at most 1 to the sum of each of the k - 1 metrics and 1 to the number
    of records, so that with it or without it these k numbers move by at most sqrt(k) in L2. Each
    gets Gaussian noise of standard deviation ``noise_multiplier * sqrt(k)``: the Gaussian
    mechanism of that noise multiplier, which :class:`hanse.privacy.accounting.Charge` describes,
    under add-or-remove adjacency. Changing a record moves the sums by at most sqrt(k - 1), and is
    covered by the same. Where ``metrics.records`` makes the number of records public, that
    number is no part of what is released, and k is one less. The means are functions of the
    noised sums alone.

    Sums of ``releases`` mechanisms, each with noise of its own, have the noise of all of them:
    nothing else of the single ones leaves, so it is drawn once, with their variances added up.

    It assumes that a record's values do not depend on the other records
    (:func:`hanse_client.privacy.checks.check_values`) to the last bit, and noise that is
    Gaussian as far as float64 goes. The lowest bits of a float64 sum could tell numbers apart
    that noise ought to blur (Mironov 2012, https://doi.org/10.1145/2382196.2382264); they are
    rounded off.

    Args:
        sums: by name, of values within [0, 1].
        records: how many records the sums are over; private unless ``metrics.records`` is given.
        releases: how many mechanisms of that noise multiplier the sums add up.

    Returns:
        By name, each within [0, 1].
    """
    counted = metrics.records is None
    exact = [sums[name] for name in metrics.names] + ([records] if counted else [])
    deviation = metrics.noise_multiplier * math.sqrt(len(exact) * releases)
    grain = deviation * GRAIN
    noised = [
        round((value + deviation * draw) / grain) * grain
        for value, draw in zip(exact, noise.standard_normals(len(exact)).tolist(), strict=True)
    ]
    over = max(noised[-1] if metrics.records is None else metrics.records, 1.0)
    return {
        name: min(max(total / over, 0.0), 1.0)
        for name, total in zip(metrics.names, noised, strict=False)
    }


class TrainingTally:
    """What the steps of a private round add up to, for their noised metrics."""

    def __init__(self, metrics: NoisedMetrics) -> None:
        self._metrics = metrics
        self._bounds = {TRAIN_LOSS: metrics.loss_bound, CLIPPED_FRACTION: 1.0}
        self._sums = dict.fromkeys(self._bounds, 0.0)
        self._records = 0
        self._steps = 0

    def add(self, losses: Tensor, clipped: int) -> None:
        """Add a step: the losses of its records, shape (B,), and how many gradients it clipped."""
        shares = clipped_shares(losses, self._metrics.loss_bound)
        self._sums[TRAIN_LOSS] += float(shares.sum())
        self._sums[CLIPPED_FRACTION] += min(clipped, len(losses))
        self._records += len(losses)
        self._steps += 1

    def release(self, noise: NoiseSource) -> dict[str, float]:
        """The noised means over all records drawn; to be called once."""
        means = noised_means(
            self._metrics, self._sums, self._records, noise=noise, releases=self._steps
        )
        return {name: mean * self._bounds[name] for name, mean in means.items()}

"""What releases cost: epsilon of a composition of Poisson-sampled Gaussian mechanisms.

The guarantee is (epsilon, delta)-differential privacy of one record under add-or-remove
adjacency: two data sets are neighbours if one is the other without one record. A charge assumes
that each record enters each batch on its own with the sampling rate, that its contribution to
the batch's sum is at most the clipping norm in L2, and that the sum gets Gaussian noise of
standard deviation ``noise_multiplier`` times the clipping norm, empty batches included.

Three accountants answer, from the fastest to the tightest: Renyi differential privacy (Mironov,
Talwar, Zhang 2019, arXiv 1908.10530), an upper bound in milliseconds; the closed form of the
Gaussian mechanism (Balle, Wang 2018, arXiv 1805.06530), exact where nothing is sampled; and
privacy loss distributions (Doroshenko et al. 2022, arXiv 2207.04380), an upper bound that is
tight to about five digits. All of them compose adaptively chosen charges of fixed parameters.

The library of the accountants is imported at the first question: it takes as long as torch does.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

MOST_DISTINCT = 50
"""Distinct (noise multiplier, sampling rate) pairs above which the Renyi bound stands: the
distributions take about a second for each."""

WIDEST = 100.0
"""Epsilon above which the Renyi bound stands: the distributions take memory in proportion."""


@dataclass(frozen=True, kw_only=True, order=True)
class Charge:
    """``steps`` steps of one Poisson-sampled Gaussian mechanism.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm, above 0.
        sampling_rate: probability with which a record enters a batch, in (0, 1].
        steps: at least 1.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0.0):
            raise ValueError(f"noise_multiplier={self.noise_multiplier} is not above 0 and finite")
        if not 0.0 < self.sampling_rate <= 1.0:
            raise ValueError(f"sampling_rate={self.sampling_rate} is not in (0, 1]")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is below 1")


Charges = tuple[Charge, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether charges fit a budget, and the epsilon by which that was decided.

    Attributes:
        epsilon: an upper bound; the tightest known if ``tight``, else the Renyi bound.
    """

    fits: bool
    epsilon: float
    tight: bool


def merge(charges: Iterable[Charge]) -> Charges:
    """The same charges, those of equal mechanisms added up, in a fixed order."""
    steps: defaultdict[tuple[float, float], int] = defaultdict(int)
    for charge in charges:
        steps[charge.noise_multiplier, charge.sampling_rate] += charge.steps
    return tuple(
        Charge(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=count)
        for (noise_multiplier, sampling_rate), count in sorted(steps.items())
    )


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """The tightest epsilon known for ``charges`` together, at ``delta``; 0 for none.

    Raises:
        ValueError: if ``delta`` is not in (0, 1).
    """
    return _epsilon(merge(charges), _checked(delta))


def epsilon_bound(charges: Iterable[Charge], delta: float) -> float:
    """An upper bound of :func:`epsilon` that takes milliseconds.

    Raises:
        ValueError: if ``delta`` is not in (0, 1).
    """
    return _renyi(merge(charges), _checked(delta))


def decide(charges: Iterable[Charge], *, budget: float, delta: float) -> Verdict:
    """Whether ``charges`` together cost at most an epsilon of ``budget`` at ``delta``.

    The tight accountant is asked only where the fast bound does not settle it.

    Raises:
        ValueError: if ``delta`` is not in (0, 1).
    """
    merged = merge(charges)
    bound = _renyi(merged, _checked(delta))
    if bound <= budget:
        return Verdict(fits=True, epsilon=bound, tight=_unsampled(merged))
    tight = _epsilon(merged, delta)
    return Verdict(fits=tight <= budget, epsilon=tight, tight=True)


def _checked(delta: float) -> float:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta={delta} is not in (0, 1)")
    return delta


def _unsampled(charges: Charges) -> bool:
    return all(charge.sampling_rate == 1.0 for charge in charges)


def _gaussian_noise(charges: Charges) -> float:
    """The noise multiplier of the one Gaussian mechanism that unsampled ``charges`` make."""
    precision = sum(charge.steps / charge.noise_multiplier**2 for charge in charges)
    return 1.0 / math.sqrt(precision)


@lru_cache(maxsize=256)
def _epsilon(charges: Charges, delta: float) -> float:
    bound = _renyi(charges, delta)
    if _unsampled(charges) or len(charges) > MOST_DISTINCT or bound > WIDEST:
        return bound
    from dp_accounting.pld import privacy_loss_distribution as pld

    unsampled = tuple(charge for charge in charges if charge.sampling_rate == 1.0)
    total = pld.identity()
    if unsampled:
        total = pld.from_gaussian_mechanism(_gaussian_noise(unsampled))
    for charge in charges:
        if charge.sampling_rate < 1.0:
            step = _one_step_distribution(charge.noise_multiplier, charge.sampling_rate)
            total = total.compose(step.self_compose(charge.steps))
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)  # many simulated sites are charged alike; each round anew
def _renyi(charges: Charges, delta: float) -> float:
    """The Renyi bound; where nothing is sampled the closed form, which is as fast and exact."""
    if not charges:
        return 0.0
    import dp_accounting

    if _unsampled(charges):
        return float(dp_accounting.get_epsilon_gaussian(_gaussian_noise(charges), delta))
    divergences = sum(
        charge.steps * _one_step_divergences(charge.noise_multiplier, charge.sampling_rate)
        for charge in charges
    )
    orders = dp_accounting.rdp.RdpAccountant().orders
    return float(dp_accounting.rdp.compute_epsilon(orders, divergences, delta)[0])


@lru_cache(maxsize=1024)
def _one_step_divergences(noise_multiplier: float, sampling_rate: float) -> NDArray[np.float64]:
    import dp_accounting

    event = dp_accounting.PoissonSampledDpEvent(
        sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    with _quiet_accountant():
        divergences = dp_accounting.rdp.RdpAccountant().compose(event).rdp
    # A divergence is never negative. Rounding can make it so, and the conversion to epsilon
    # would take that for no loss at all; without the order, the bound still holds.
    return np.where(divergences < 0.0, np.inf, divergences)


@lru_cache(maxsize=64)
def _one_step_distribution(
    noise_multiplier: float, sampling_rate: float
) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(noise_multiplier, sampling_prob=sampling_rate)


@contextmanager
def _quiet_accountant() -> Iterator[None]:
    """Without the warnings for orders that do not converge: the bound leaves them out."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

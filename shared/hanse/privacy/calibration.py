"""The noise that a target epsilon needs."""

from __future__ import annotations

import math
from functools import lru_cache

import dp_accounting
from scipy.optimize import brentq

from hanse.errors import CalibrationError
from hanse.privacy.accounting import Charge, epsilon, epsilon_bound

LEAST_NOISE = 0.3
MOST_NOISE = 10_000.0

_PRECISION = 5e-4  # relative; the result lies at most twice that above the smallest


@lru_cache(maxsize=1024)
def calibrate_noise(target_epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier for which ``steps`` steps cost at most ``target_epsilon``.

    The cost is that of :func:`hanse.privacy.accounting.epsilon`, which a ledger charges too: a
    budget equal to the target lasts for all the steps. The result is at most a thousandth
    above the smallest, never below it, and at least 0.3.

    Args:
        target_epsilon: above 0, for all the steps together.
        delta: in (0, 1).
        sampling_rate: probability with which a record enters a batch, in (0, 1].
        steps: steps of the whole run, at least 1.

    Raises:
        CalibrationError: if that takes a noise multiplier above 10,000.
        ValueError: if an argument is out of its range.
    """
    if not target_epsilon > 0.0:
        raise ValueError(f"target_epsilon={target_epsilon} is not above 0")

    enough = _enough(target_epsilon, delta, sampling_rate, steps)
    if sampling_rate == 1.0:
        noise = dp_accounting.get_sigma_gaussian(target_epsilon, delta) * math.sqrt(steps)
    else:
        noise = _root(target_epsilon, delta, sampling_rate, steps, enough)
    noise = max(float(noise), LEAST_NOISE)
    while _cost(noise, delta, sampling_rate, steps) > target_epsilon:
        noise *= 1.0 + _PRECISION
    return noise


def _cost(noise: float, delta: float, sampling_rate: float, steps: int) -> float:
    charge = Charge(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
    return epsilon([charge], delta)


def _enough(target_epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """A noise multiplier that suffices by the fast bound; half of it may suffice too."""
    noise = LEAST_NOISE
    while noise <= MOST_NOISE:
        charge = Charge(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
        if epsilon_bound([charge], delta) <= target_epsilon:
            return noise
        noise *= 2.0
    # No sampling rate and no steps: these may tell how many records a site has.
    raise CalibrationError(
        f"target_epsilon={target_epsilon:g} at delta={delta:g} needs a noise_multiplier above "
        f"{MOST_NOISE:g}, the most there is"
    )


def _root(
    target_epsilon: float, delta: float, sampling_rate: float, steps: int, enough: float
) -> float:
    """The noise multiplier that costs the target, to the precision; the least if that is less."""

    def excess(log_noise: float) -> float:
        return _cost(math.exp(log_noise), delta, sampling_rate, steps) - target_epsilon

    too_little = enough
    while excess(math.log(too_little)) <= 0.0:
        if too_little <= LEAST_NOISE:
            return LEAST_NOISE
        too_little, enough = max(too_little / 2.0, LEAST_NOISE), too_little
    return math.exp(brentq(excess, math.log(too_little), math.log(enough), xtol=_PRECISION))

"""The noise that a target epsilon needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from hanse.errors import CalibrationError
from hanse.privacy.accounting import Charge, Charges, epsilon, epsilon_bound

LEAST_NOISE = 0.3
MOST_NOISE = 10_000.0

_PRECISION = 5e-4  # relative; the result lies at most twice that above the smallest


@lru_cache(maxsize=1024)
def calibrate_noise(
    target_epsilon: float, delta: float, sampling_rate: float, steps: int, beside: Charges = ()
) -> float:
    """The smallest noise multiplier for which ``steps`` steps cost at most ``target_epsilon``.

    The cost is that of :func:`hanse.privacy.accounting.epsilon`, which a ledger charges too: a
    budget equal to the target lasts for all the steps. The result is at most a thousandth
    above the smallest, never below it, and at least 0.3.

    Args:
        target_epsilon: above 0, for all the steps together.
        delta: in (0, 1).
        sampling_rate: probability with which a record enters a batch, in (0, 1].
        steps: steps of the whole run, at least 1.
        beside: what else the target is to cover, of given noise.

    Raises:
        CalibrationError: if that takes a noise multiplier above 10,000, or ``beside`` alone
            costs more than the target.
        ValueError: if an argument is out of its range.
    """
    if not target_epsilon > 0.0:
        raise ValueError(f"target_epsilon={target_epsilon} is not above 0")

    def spent(accountant: Callable[[Charges, float], float], noise: float) -> float:
        run = Charge(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
        return accountant((run, *beside), delta)

    def bound(noise: float) -> float:
        return spent(epsilon_bound, noise)

    def cost(noise: float) -> float:
        return spent(epsilon, noise)

    enough = _enough(bound, target_epsilon, delta)
    if all(charge.sampling_rate == 1.0 for charge in beside) and sampling_rate == 1.0:
        noise = _unsampled(target_epsilon, delta, steps, beside)
    else:
        noise = _root(cost, target_epsilon, enough)
    noise = max(noise, LEAST_NOISE)
    while cost(noise) > target_epsilon:
        noise *= 1.0 + _PRECISION
    return noise


def _unsampled(target_epsilon: float, delta: float, steps: int, beside: Charges) -> float:
    """Gaussian mechanisms make one, whose inverse variance is the sum of theirs."""
    import dp_accounting

    whole = float(dp_accounting.get_sigma_gaussian(target_epsilon, delta)) ** -2
    left = whole - sum(charge.steps / charge.noise_multiplier**2 for charge in beside)
    return math.sqrt(steps / max(left, steps / MOST_NOISE**2))


def _enough(bound: Callable[[float], float], target_epsilon: float, delta: float) -> float:
    """A noise multiplier that suffices by the fast bound; half of it may suffice too."""
    noise = LEAST_NOISE
    while noise <= MOST_NOISE:
        if bound(noise) <= target_epsilon:
            return noise
        noise *= 2.0
    # No sampling rate and no steps: these may tell how many records a site has.
    raise CalibrationError(
        f"target_epsilon={target_epsilon:g} at delta={delta:g} needs a noise_multiplier above "
        f"{MOST_NOISE:g}, the most there is"
    )


def _root(cost: Callable[[float], float], target_epsilon: float, enough: float) -> float:
    """The noise multiplier that costs the target, to the precision; the least if that is less."""

    from scipy.optimize import brentq  # as slow to import as the accountants

    def excess(log_noise: float) -> float:
        return cost(math.exp(log_noise)) - target_epsilon

    too_little = enough
    while excess(math.log(too_little)) <= 0.0:
        if too_little <= LEAST_NOISE:
            return LEAST_NOISE
        too_little, enough = max(too_little / 2.0, LEAST_NOISE), too_little
    root = brentq(excess, math.log(too_little), math.log(enough), xtol=_PRECISION)
    return math.exp(root)

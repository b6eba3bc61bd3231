"""The accountant against closed forms, against itself, and against its budget decisions."""

from __future__ import annotations

import time

import pytest
from hanse.privacy import accounting
from hanse.privacy.accounting import Charge, decide, epsilon, epsilon_bound, merge

DELTA = 1e-5


def charge(noise_multiplier: float, sampling_rate: float, steps: int) -> Charge:
    return Charge(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)


# Analytic Gaussian values of Balle and Wang 2018 for noise_multiplier / sqrt(steps), computed by
# bisection of Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s) = delta with scipy's normal distribution.
def gaussian_epsilon(deviation: float, delta: float) -> float:
    from math import exp

    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(e: float) -> float:
        above = norm.cdf(0.5 / deviation - e * deviation)
        below = exp(e) * norm.cdf(-0.5 / deviation - e * deviation)
        return float(above - below - delta)

    return float(brentq(excess, 0.0, 60.0, xtol=1e-10))


@pytest.mark.parametrize(
    ("noise_multiplier", "steps", "delta"),
    [(4.0, 100, 1e-5), (10.0, 25, 1e-5), (50.0, 40, 1e-6), (1.0, 1, 1e-5)],
)
def test_unsampled_charges_cost_the_closed_form(
    noise_multiplier: float, steps: int, delta: float
) -> None:
    exact = gaussian_epsilon(noise_multiplier / steps**0.5, delta)
    assert epsilon([charge(noise_multiplier, 1.0, steps)], delta) == pytest.approx(exact, abs=1e-6)


def test_the_reference_figure() -> None:
    assert epsilon([charge(4.0, 1.0, 100)], DELTA) == pytest.approx(13.20671, abs=1e-5)


def test_unsampled_charges_of_different_noise_are_one_gaussian() -> None:
    both = [charge(3.0, 1.0, 4), charge(6.0, 1.0, 9)]
    deviation = (4 / 9 + 9 / 36) ** -0.5
    assert epsilon(both, DELTA) == pytest.approx(gaussian_epsilon(deviation, DELTA), abs=1e-6)


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "steps", "expected"),
    [(1.0, 0.01, 1000, 1.828), (0.8, 0.05, 500, 12.04), (1.0, 0.064, 1600, 19.47)],
)
def test_sampled_charges_cost_the_reference_figures(
    noise_multiplier: float, sampling_rate: float, steps: int, expected: float
) -> None:
    charges = [charge(noise_multiplier, sampling_rate, steps)]
    assert epsilon(charges, DELTA) == pytest.approx(expected, rel=1e-3)
    assert expected < epsilon_bound(charges, DELTA) < 1.25 * expected


def test_distributions_agree_with_the_closed_form_when_hardly_anything_is_left_out() -> None:
    almost = epsilon([charge(4.0, 1.0 - 1e-9, 100)], DELTA)
    assert almost == pytest.approx(13.20671, abs=1e-3)


def test_a_mixture_of_sampled_and_unsampled_lies_between_its_parts_and_its_bound() -> None:
    sampled, unsampled = charge(1.0, 0.01, 500), charge(20.0, 1.0, 10)
    together = epsilon([sampled, unsampled], DELTA)
    assert max(epsilon([sampled], DELTA), epsilon([unsampled], DELTA)) < together
    assert together < epsilon_bound([sampled, unsampled], DELTA)


def test_rounds_one_by_one_cost_exactly_one_run() -> None:
    one_by_one = [charge(1.0, 0.064, 16)] * 100
    assert epsilon(one_by_one, DELTA) == epsilon([charge(1.0, 0.064, 1600)], DELTA)
    assert merge(one_by_one) == (charge(1.0, 0.064, 1600),)


def test_the_order_of_charges_does_not_matter() -> None:
    first, second = charge(1.0, 0.01, 10), charge(2.0, 0.02, 30)
    assert epsilon([first, second, first], DELTA) == epsilon([second, first, first], DELTA)


def test_no_charges_cost_nothing() -> None:
    assert epsilon([], DELTA) == epsilon_bound([], DELTA) == 0.0
    assert decide([], budget=1.0, delta=DELTA).fits


def test_more_steps_less_noise_and_higher_rates_cost_more() -> None:
    base = epsilon([charge(1.0, 0.02, 100)], DELTA)
    assert epsilon([charge(1.0, 0.02, 101)], DELTA) > base
    assert epsilon([charge(0.99, 0.02, 100)], DELTA) > base
    assert epsilon([charge(1.0, 0.021, 100)], DELTA) > base


def test_the_fast_bound_settles_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object) -> float:
        raise AssertionError("the tight accountant was asked")

    monkeypatch.setattr(accounting, "_epsilon", unwanted)
    verdict = decide([charge(1.0, 0.01, 1000)], budget=2.2, delta=DELTA)
    assert verdict.fits
    assert not verdict.tight
    assert verdict.epsilon == epsilon_bound([charge(1.0, 0.01, 1000)], DELTA)


def test_the_tight_accountant_settles_the_rest() -> None:
    charges = [charge(1.0, 0.01, 1000)]  # 1.828, by the fast bound 2.101
    between = decide(charges, budget=1.9, delta=DELTA)
    assert between.fits
    assert between.tight
    assert between.epsilon == pytest.approx(1.828, abs=1e-3)
    assert not decide(charges, budget=1.8, delta=DELTA).fits


def test_many_distinct_mechanisms_are_left_to_the_fast_bound() -> None:
    charges = [charge(2.0 + i / 100, 0.01, 1) for i in range(accounting.MOST_DISTINCT + 1)]
    assert epsilon(charges, DELTA) == epsilon_bound(charges, DELTA)
    assert epsilon(charges[:2], DELTA) < epsilon_bound(charges[:2], DELTA)


def test_an_absurd_loss_is_refused_quickly() -> None:
    started = time.monotonic()
    verdict = decide([charge(0.05, 0.5, 100_000)], budget=3.0, delta=DELTA)
    assert not verdict.fits
    assert time.monotonic() - started < 5.0


def test_a_divergence_that_rounding_made_negative_costs_something() -> None:
    tiny = [charge(1e6, 1e-7, 1)]
    assert epsilon_bound(tiny, 1e-15) >= 0.0
    negative = accounting._one_step_divergences(1e6, 1e-7)
    assert (negative >= 0.0).all()


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "steps"),
    [
        (0.0, 0.1, 1),
        (-1.0, 0.1, 1),
        (float("inf"), 0.1, 1),
        (float("nan"), 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, float("nan"), 1),
        (1.0, 0.1, 0),
    ],
)
def test_impossible_charges_are_refused(
    noise_multiplier: float, sampling_rate: float, steps: int
) -> None:
    with pytest.raises(ValueError):
        charge(noise_multiplier, sampling_rate, steps)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta="):
        epsilon([charge(1.0, 0.1, 1)], delta)

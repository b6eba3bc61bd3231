"""Calibrated noise keeps its promise, and hardly exceeds what the promise takes."""

from __future__ import annotations

import pytest
from hanse.errors import CalibrationError
from hanse.privacy.accounting import Charge, epsilon
from hanse.privacy.calibration import LEAST_NOISE, calibrate_noise

DELTA = 1e-5


def cost(noise_multiplier: float, sampling_rate: float, steps: int) -> float:
    charge = Charge(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
    return epsilon([charge], DELTA)


@pytest.mark.parametrize(
    ("target", "sampling_rate", "steps"),
    [(3.0, 1.0, 40), (1.0, 1.0, 10_000), (8.0, 0.064, 1600), (1.0, 0.01, 1000), (0.1, 0.3, 1)],
)
def test_the_result_holds_the_target_and_is_the_smallest_to_a_thousandth(
    target: float, sampling_rate: float, steps: int
) -> None:
    noise = calibrate_noise(target, DELTA, sampling_rate, steps)
    assert 0.98 * target < cost(noise, sampling_rate, steps) <= target
    assert cost(noise / 1.0011, sampling_rate, steps) > target


def test_a_target_that_hardly_needs_noise_gets_the_least() -> None:
    assert calibrate_noise(90.0, DELTA, 0.001, 1) == LEAST_NOISE


def test_a_target_out_of_reach_is_refused_without_telling_the_number_of_records() -> None:
    with pytest.raises(CalibrationError, match=r"target_epsilon=1e-05 .* above 10000") as refusal:
        calibrate_noise(1e-5, DELTA, 0.0371, 1_234_567)
    assert refusal.value.remedy
    assert "0.0371" not in refusal.value.reason()
    assert "1234567" not in refusal.value.reason()


def test_impossible_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="target_epsilon=0"):
        calibrate_noise(0.0, DELTA, 0.1, 1)


EVALUATIONS = (Charge(noise_multiplier=20.0, sampling_rate=1.0, steps=40),)


@pytest.mark.parametrize(("sampling_rate", "steps"), [(1.0, 40), (0.05, 200)])
def test_what_stands_beside_shares_the_target(sampling_rate: float, steps: int) -> None:
    noise = calibrate_noise(2.0, DELTA, sampling_rate, steps, EVALUATIONS)
    run = Charge(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
    assert 1.98 < epsilon([run, *EVALUATIONS], DELTA) <= 2.0
    assert noise > calibrate_noise(2.0, DELTA, sampling_rate, steps)


def test_evaluations_that_cost_more_than_the_target_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"target_epsilon=0\.5"):
        calibrate_noise(0.5, DELTA, 1.0, 40, EVALUATIONS)

"""Noised means: the noise that is charged for, on every number, and nothing else gets through."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hanse.evaluation import clipped_shares, shares
from hanse.task import RecordMetric
from hanse_client import noised
from hanse_client.noised import TrainingTally, noised_means
from hanse_client.privacy.noise import SecureNoise
from hanse_client.release import CLIPPED_FRACTION, TRAIN_LOSS, NoisedMetrics
from torch import Tensor

SOURCE = SecureNoise()


class Given:
    """Draws that a test sets."""

    def __init__(self, *draws: float) -> None:
        self._draws = draws

    def standard_normals(self, count: int) -> Tensor:
        assert count == len(self._draws)
        return torch.tensor(self._draws, dtype=torch.float64)


def metrics(*names: str, records: float | None = None, noise: float = 2.0) -> NoisedMetrics:
    return NoisedMetrics(names=names, noise_multiplier=noise, loss_bound=4.0, records=records)


def sums_with_noise(counted: bool, draws: int = 4000) -> Tensor:
    """The noised sums of two metrics, read back from means over so many that none is clamped."""
    many = 1e6
    told = metrics("a", "b", records=None if counted else many)
    return torch.tensor(
        [
            list(noised_means(told, {"a": 5e5, "b": 5e5}, many, noise=SOURCE).values())
            for _ in range(draws)
        ]
    )


def test_the_noise_of_each_sum_is_the_multiplier_times_what_a_record_adds_at_most() -> None:
    found = sums_with_noise(counted=False) * 1e6 - 5e5
    assert found.std(dim=0).tolist() == pytest.approx([2.0 * math.sqrt(2)] * 2, rel=0.05)
    assert found.mean(dim=0).abs().max() < 0.2
    assert abs(float(torch.corrcoef(found.T)[0, 1])) < 0.06


def test_a_private_count_is_noised_as_well_and_costs_its_share() -> None:
    # of (S + X) / (n + Z) with S = n / 2: X - Z / 2 over n, in the first order
    found = (sums_with_noise(counted=True) - 0.5) * 1e6
    expected = 2.0 * math.sqrt(3) * math.sqrt(1 + 1 / 4)
    assert found.std(dim=0).tolist() == pytest.approx([expected] * 2, rel=0.05)


@pytest.mark.parametrize("records", [None, 100.0])
def test_one_record_moves_what_is_noised_by_no_more_than_what_is_charged(
    records: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The L2 distance of the exact numbers of neighbours, in standard deviations of the noise."""
    monkeypatch.setattr(noised, "GRAIN", 1e-9)
    names = ("a", "b", "c")

    def released(size: int) -> Tensor:
        values = torch.ones(size, dtype=torch.float64)  # the most that a record can add
        told = noised_means(
            metrics(*names, records=records),
            dict.fromkeys(names, float(values.sum()) / 4),
            float(size),
            noise=Given(*[0.0] * (3 if records else 4)),
        )
        over = records or size
        seen = [told[name] * over * 4 for name in names]
        return torch.tensor(seen if records else [*seen, over], dtype=torch.float64)

    distance = float((released(80) - released(79)).norm())
    deviation = 2.0 * math.sqrt(3 if records else 4)
    assert distance / deviation <= 1 / 2.0 + 1e-6


def test_means_stay_in_their_range_and_a_noised_count_of_less_than_one_counts_as_one() -> None:
    told = metrics("a", "b")
    low = noised_means(told, {"a": 3.0, "b": 1.0}, 5.0, noise=Given(-9.0, 9.0, -9.0))
    assert low == {"a": 0.0, "b": 1.0}


def test_no_low_bit_of_a_sum_shows() -> None:
    drawn = (0.1234567, 0.7654321)
    told = metrics("a", "b", records=64.0)
    one, other = (
        noised_means(told, {"a": 7.0 + tail, "b": 9.0}, 64.0, noise=Given(*drawn))
        for tail in (0.0, 1e-12)
    )
    assert one == other


def test_several_releases_have_the_noise_of_all() -> None:
    told = metrics("a", records=1e6)
    found = torch.tensor(
        [
            noised_means(told, {"a": 5e5}, 1e6, noise=SOURCE, releases=25)["a"] * 1e6 - 5e5
            for _ in range(2000)
        ]
    )
    assert float(found.std()) == pytest.approx(2.0 * 5.0, rel=0.06)


@pytest.mark.parametrize(
    ("value", "share"),
    [(0.0, 0.0), (1.0, 0.25), (9.0, 1.0), (-1.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)],
)
def test_a_record_counts_within_zero_and_one_whatever_its_loss(value: float, share: float) -> None:
    assert clipped_shares(torch.tensor([value]), 4.0).tolist() == [share]


def test_values_that_are_not_one_a_record_tell_no_number_of_records() -> None:
    from hanse.errors import TaskError

    wrong = RecordMetric(values=lambda outputs, targets: outputs)
    with pytest.raises(TaskError) as told:
        shares(wrong, torch.zeros(37, 2), torch.zeros(37))
    assert "37" not in told.value.message


def test_a_round_is_tallied_over_its_steps() -> None:
    tally = TrainingTally(metrics(TRAIN_LOSS, CLIPPED_FRACTION))
    tally.add(torch.tensor([1.0, 2.0, 100.0]), 1)
    tally.add(torch.tensor([]), 0)
    tally.add(torch.tensor([math.nan]), 1)
    told = tally.release(Given(0.0, 0.0, 0.0))
    assert told == pytest.approx({TRAIN_LOSS: (1 + 2 + 4 + 4) / 4, CLIPPED_FRACTION: 0.5}, abs=0.05)


def test_only_what_is_listed_is_tallied() -> None:
    tally = TrainingTally(metrics(TRAIN_LOSS, records=10.0))
    tally.add(torch.tensor([1.0, 2.0]), 2)
    assert set(tally.release(Given(0.0))) == {TRAIN_LOSS}


def test_a_source_is_asked_for_each_release(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting:
        def standard_normals(self, count: int) -> Tensor:
            asked.append(count)
            return SOURCE.standard_normals(count)

    def told() -> dict[str, Any]:
        return noised_means(metrics("a", records=9.0), {"a": 4.0}, 9.0, noise=Counting())

    assert told() != told()
    assert asked == [1, 1]

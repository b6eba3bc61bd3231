"""Batches have the distribution of one coin for each record, from nobody's seed.

The bounds are exceeded by a correct sampler less than once in a million runs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hanse_client.privacy.sampling import poisson_batches
from scipy import stats

RARE = 1e-7


@pytest.mark.parametrize(("records", "rate"), [(20, 0.3), (100, 0.02), (1, 0.5)])
def test_sizes_are_binomial(records: int, rate: float) -> None:
    steps = 20_000
    sizes = [len(batch) for batch in poisson_batches(records, rate, steps)]
    expected = stats.binom.pmf(np.arange(records + 1), records, rate) * steps
    counts = np.bincount(sizes, minlength=records + 1).astype(float)
    common = expected >= 5
    expected = np.append(expected[common], expected[~common].sum())
    counts = np.append(counts[common], counts[~common].sum())
    if expected[-1] == 0:
        expected, counts = expected[:-1], counts[:-1]
    assert stats.chisquare(counts, expected).pvalue > RARE
    assert len(sizes) == steps


def test_each_record_and_each_pair_is_as_likely_as_any() -> None:
    records, rate, steps = 12, 0.25, 20_000
    together = np.zeros((records, records))
    for batch in poisson_batches(records, rate, steps):
        chosen = np.zeros(records)
        np.add.at(chosen, batch.numpy(), 1.0)
        assert chosen.max(initial=0.0) <= 1.0
        together += np.outer(chosen, chosen)
    probability = np.where(np.eye(records, dtype=bool), rate, rate**2)
    deviation = np.sqrt(steps * probability * (1 - probability))
    assert (np.abs(together - steps * probability) / deviation).max() < 6.5


def test_a_rate_of_one_takes_every_record_every_time() -> None:
    for batch in poisson_batches(7, 1.0, 3):
        assert sorted(batch.tolist()) == list(range(7))


def test_empty_batches_are_batches() -> None:
    batches = list(poisson_batches(3, 1e-12, 50))
    assert [len(batch) for batch in batches] == [0] * 50
    assert batches[0].dtype == torch.int64


def test_no_seed_of_the_process_decides_the_batches() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append([batch.tolist() for batch in poisson_batches(1000, 0.1, 3)])
    assert drawn[0] != drawn[1]

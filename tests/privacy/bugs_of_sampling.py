"""Batches that are no coin for each record, or at another rate than is charged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from hanse_client import training
from hanse_client.plan import LocalPlan, plan_round
from hanse_client.privacy.sampling import poisson_batches
from torch import Tensor

from tests.privacy import test_training_batches as batches
from tests.privacy.planting import Bug, Ground
from tests.unit.client import test_plan, test_sampling

Sampler = Callable[[int, float, int], Iterator[Tensor]]


def sampled_by(sampler: Sampler) -> Callable[[Ground], None]:
    """Plants another sampler, where training finds it and where its tests do."""

    def plant(ground: Ground) -> None:
        for module in (training, test_sampling):
            ground.patch.setattr(module, "poisson_batches", sampler)

    return plant


def of_fixed_size(records: int, rate: float, steps: int) -> Iterator[Tensor]:
    for _ in range(steps):
        yield torch.randperm(records)[: round(records * rate)]


def shuffled(records: int, rate: float, steps: int) -> Iterator[Tensor]:
    """Epoch by epoch, as a data loader has it."""
    left: list[int] = []
    for _ in range(steps):
        size = round(records * rate)
        if len(left) < size:
            left = torch.randperm(records).tolist()
        yield torch.tensor(left[:size])
        left = left[size:]


def never_empty(records: int, rate: float, steps: int) -> Iterator[Tensor]:
    for _ in range(steps):
        yield next(batch for batch in poisson_batches(records, rate, 10**6) if len(batch) > 0)


def with_replacement(records: int, rate: float, steps: int) -> Iterator[Tensor]:
    """As a WeightedRandomSampler has it."""
    for batch in poisson_batches(records, rate, steps):
        yield torch.randint(0, records, (len(batch),))


def the_same_again(records: int, rate: float, steps: int) -> Iterator[Tensor]:
    (batch,) = poisson_batches(records, rate, 1)
    for _ in range(steps):
        yield batch


def planned_by(change: Callable[[LocalPlan, int], LocalPlan]) -> Callable[[Ground], None]:
    """Plants a change of plans, where the tests find them; it gets the number of records too."""

    def changed(job: Any, server_round: int, records: int, **more: Any) -> LocalPlan:
        return change(plan_round(job, server_round, records, **more), records)

    def plant(ground: Ground) -> None:
        for module in (test_plan, batches):
            ground.patch.setattr(module, "plan_round", changed)

    return plant


def rate_of_a_loader(plan: LocalPlan, records: int) -> LocalPlan:
    """One over the number of batches: it is charged for too little, or too much."""
    assert plan.privacy is not None
    rate = 1.0 / ceil(records / plan.batch_size)
    return replace(plan, privacy=replace(plan.privacy, sampling_rate=rate))


def divisor_of_the_records(plan: LocalPlan, records: int) -> LocalPlan:
    """The expected size in whole records tells how many there are."""
    assert plan.privacy is not None
    return replace(plan, batch_size=int(records * plan.privacy.sampling_rate))


def drawn(ground: Ground) -> None:
    batches.test_a_round_draws_each_record_at_each_step_on_its_own(ground.patch)


BUGS = [
    *(
        Bug(name=f"{what}, in training", plant=sampled_by(sampler), guard=drawn)
        for what, sampler in {
            "batches are of a fixed size": of_fixed_size,
            "batches are shuffled epochs": shuffled,
            "records are drawn with replacement": with_replacement,
            "every batch is the first again": the_same_again,
        }.items()
    ),
    Bug(
        name="batches are of a fixed size",
        plant=sampled_by(of_fixed_size),
        guard=lambda _: test_sampling.test_sizes_are_binomial(20, 0.3),
    ),
    Bug(
        name="empty batches are drawn anew",
        plant=sampled_by(never_empty),
        guard=lambda _: test_sampling.test_sizes_are_binomial(100, 0.02),
    ),
    Bug(
        name="records are drawn with replacement",
        plant=sampled_by(with_replacement),
        guard=lambda _: test_sampling.test_each_record_and_each_pair_is_as_likely_as_any(),
    ),
    Bug(
        name="the rate is one over the number of batches",
        plant=planned_by(rate_of_a_loader),
        guard=lambda _: test_plan.test_a_private_epoch_draws_each_record_once_in_expectation(
            97, 32 / 97, 4
        ),
    ),
    Bug(
        name="the rate is one over the number of batches, in training",
        plant=planned_by(rate_of_a_loader),
        guard=drawn,
    ),
    Bug(
        name="the divisor is a function of the number of records",
        plant=planned_by(divisor_of_the_records),
        guard=lambda _: test_plan.test_a_private_epoch_draws_each_record_once_in_expectation(
            5, 1.0, 1
        ),
    ),
]

"""What the empirical audit catches by itself, knowing nothing of the engine's code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hanse_client import training
from hanse_client.privacy.sampling import poisson_batches
from torch import Tensor

from tests.privacy import bugs_of_noise as noise
from tests.privacy import bugs_of_sampling as sampling
from tests.privacy import bugs_of_steps as steps
from tests.privacy import test_audited_engine as audited
from tests.privacy.planting import Bug, Ground


def at_rate(change: Callable[[float], float]) -> Callable[[Ground], None]:
    """Plants batches at another rate than is charged."""

    def sampler(records: int, rate: float, count: int) -> Iterator[Tensor]:
        return poisson_batches(records, change(rate), count)

    return lambda ground: ground.patch.setattr(training, "poisson_batches", sampler)


def batched(ground: Ground) -> None:
    audited.test_the_engine_passes_with_batches(ground.patch)


def whole(ground: Ground) -> None:
    audited.test_the_engine_passes_with_all_records_at_each_step(ground.patch)


BUGS = [
    *(
        Bug(name=f"the audit: {what}", plant=plant, guard=batched)
        for what, plant in {
            "the noise is halved": noise.scaled(0.5),
            "the noise is quartered": noise.scaled(0.25),
            "nothing is clipped": steps.factors_of(steps.not_clipped),
            "records are drawn twice as often": at_rate(lambda rate: 2 * rate),
            "all records are drawn each time": at_rate(lambda rate: 1.0),
            "batches are shuffled epochs": sampling.sampled_by(sampling.shuffled),
            "every batch is the first again": sampling.sampled_by(sampling.the_same_again),
            "the divisor is the true size of the batch": steps.step_by(steps.over_the_true_size),
            "the noise is seeded anew at each step": noise.drawn_by(noise.reseeded),
        }.items()
    ),
    *(
        Bug(name=f"the audit, of whole batches: {what}", plant=plant, guard=whole)
        for what, plant in {
            "the noise is halved": noise.scaled(0.5),
            "the noise is quartered": noise.scaled(0.25),
            "nothing is clipped": steps.factors_of(steps.not_clipped),
            "half of the records are drawn": at_rate(lambda rate: 0.5),
        }.items()
    ),
]

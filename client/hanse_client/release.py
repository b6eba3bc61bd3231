"""Which metrics leave a site, and in which way: decided before any record is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from hanse.evaluation import record_metrics
from hanse.flower import ENCODING_ERROR
from hanse.job import Job
from hanse.privacy.accounting import Charge, Charges
from hanse.task import AnyTask

from hanse_client.site import Noise, Policy

TRAIN_LOSS = "train_loss"
CLIPPED_FRACTION = "clipped_fraction"
UPDATE_NORM = "update_norm"
TRAINING_METRICS = (TRAIN_LOSS, CLIPPED_FRACTION)

PUBLIC_METRICS = frozenset(
    {
        *("epsilon", "epsilon_left", "delta", "noise_multiplier", "sampling_rate", "steps"),
        *(UPDATE_NORM, ENCODING_ERROR),
    }
)
"""Functions of the job, of the ledger's entries, or of updates that are private themselves."""


class Kind(StrEnum):
    """How a metric's value came about; the key of its record on the way to the last gate.

    ``PUBLIC`` values are functions of nothing private, or of what left under epsilon already;
    ``NOISED`` ones were charged to the budget; ``EXACT`` ones are outside epsilon.
    """

    PUBLIC = "public"
    NOISED = "noised"
    EXACT = "exact"


@dataclass(frozen=True, kw_only=True)
class NoisedMetrics:
    """Metrics that leave together as noised means of bounded values of records.

    Attributes:
        noise_multiplier: standard deviation of the noise over the L2 norm of what one record
            adds at most (:mod:`hanse_client.noised`).
        loss_bound: a record's loss counts up to this.
        records: how many records the means are over, or are expected to be, where the site
            makes its number public; None to release that number with noise, too.
    """

    names: tuple[str, ...]
    noise_multiplier: float
    loss_bound: float
    records: float | None


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a site lets out with noise beside the updates of one job.

    Attributes:
        training: names of the metrics of its steps; none without private training.
        evaluation: names of the metrics on its held-out records.
        evaluations: after how many rounds of the run it will be asked for these.
    """

    training: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    evaluations: int = 0
    noise: Noise = field(default_factory=Noise)
    public_count: bool = False

    @property
    def beside(self) -> Charges:
        """What all evaluations of the run cost."""
        if not (self.evaluation and self.evaluations):
            return ()
        return (self._evaluation_charge(self.evaluations),)

    @property
    def evaluation_charge(self) -> Charge | None:
        """What one evaluation costs; None where nothing noised leaves."""
        return self._evaluation_charge(1) if self.evaluation else None

    def _evaluation_charge(self, evaluations: int) -> Charge:
        return Charge(noise_multiplier=self.noise.evaluation, sampling_rate=1.0, steps=evaluations)

    def of_evaluation(self, records: int) -> NoisedMetrics | None:
        """The metrics of an evaluation of ``records`` records; None where nothing noised leaves."""
        if not self.evaluation:
            return None
        return NoisedMetrics(
            names=self.evaluation,
            noise_multiplier=self.noise.evaluation,
            loss_bound=self.noise.loss_bound,
            records=float(records) if self.public_count else None,
        )

    def of_training(self, noise_multiplier: float, expected: float) -> NoisedMetrics | None:
        """The metrics of a round's steps; None where nothing noised leaves.

        Args:
            noise_multiplier: of each step's metrics.
            expected: number of records that all its batches have in expectation.
        """
        if not self.training:
            return None
        return NoisedMetrics(
            names=self.training,
            noise_multiplier=noise_multiplier,
            loss_bound=self.noise.loss_bound,
            records=expected if self.public_count else None,
        )


def release_of(policy: Policy, job: Job, task: AnyTask, *, judges: bool) -> Release:
    """What ``policy`` lets out with noise where ``job`` runs ``task``.

    Args:
        judges: whether the site has held-out records.
    """
    bounded = record_metrics(task, loss_bound=policy.noise.loss_bound)
    return Release(
        training=_noised(policy, TRAINING_METRICS) if job.privacy.private else (),
        evaluation=_noised(policy, bounded) if judges else (),
        evaluations=job.evaluation.rounds_judged_by_sites(job.rounds),
        noise=policy.noise,
        public_count=policy.count == "public",
    )


def _noised(policy: Policy, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if leaves_noised(policy, name))


def leaves_noised(policy: Policy, name: str) -> bool:
    """Whether a metric of private records leaves with noise, if it can be noised."""
    if name in policy.release:
        return True
    return "*" in policy.release and name not in policy.release_exact


def leaves_exact(policy: Policy, name: str) -> bool:
    """Whether a metric of private records leaves as it is, outside epsilon."""
    if name in policy.release_exact:
        return True
    return "*" in policy.release_exact and name not in policy.release


def kept_back(policy: Policy, task: AnyTask) -> tuple[str, ...]:
    """Names in ``policy.release`` that never leave, as ``task`` has no bounded values for them."""
    bounded = record_metrics(task, loss_bound=policy.noise.loss_bound)
    known = {"*", *PUBLIC_METRICS, *TRAINING_METRICS, *bounded}
    return tuple(name for name in policy.release if name not in known)

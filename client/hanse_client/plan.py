"""What one round of local training will do, decided before any record is read from a batch.

A plan is a pure function of the job, the round and the number of records. The gates judge it,
the ledger charges it, and training carries it out.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

from hanse.errors import DataError
from hanse.job import Job, Optimizer, Schedule
from hanse.privacy.accounting import Charge
from hanse.privacy.calibration import calibrate_noise

from hanse_client.release import NoisedMetrics, Release

NOTHING_ELSE = Release()
"""Nothing but updates."""


@dataclass(frozen=True, kw_only=True)
class PrivateSteps:
    """The mechanism that each step of a private round applies (see :class:`hanse.job.Privacy`).

    Attributes:
        sampling_rate: probability with which each record enters a batch.
        noise_multiplier: standard deviation of the gradients' noise over the clipping norm.
        clipping_norm: largest L2 norm of a record's gradient.
    """

    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """One round of local training.

    Attributes:
        steps: optimiser steps; in a private round an empty batch is a step too.
        batch_size: the nominal one: what the job says, whatever a private batch really holds.
        privacy: the mechanism of each step; None for training without privacy.
        noised: the metrics that leave with noise, of a private round only.
        optimizer: its settings; ``lr`` in them is that of the schedule's start.
        lr: learning rate of this round.
        loss: ``task``, ``cross_entropy`` or ``mse``.
        augment: whether the task augments the batches.
        proximal_mu: FedProx's pull towards the global model; 0 for none.
        seed: of batch order, dropout and augmentation, for training without privacy only.
    """

    steps: int
    batch_size: int
    privacy: PrivateSteps | None
    optimizer: Optimizer
    lr: float
    loss: Literal["task", "cross_entropy", "mse"]
    augment: bool
    proximal_mu: float
    seed: int
    noised: NoisedMetrics | None = None

    @property
    def charge(self) -> Charge | None:
        """What the round costs, its noised metrics included; None for training without privacy.

        Gradients and metrics of a step come from the same Poisson sample. Scaled by their noise,
        what one record adds to both is 1/s_g long in the one and 1/s_m in the other: together
        they are one Gaussian mechanism of noise multiplier (s_g^-2 + s_m^-2)^(-1/2).
        """
        if self.privacy is None:
            return None
        noise = self.privacy.noise_multiplier
        if self.noised is not None:
            noise = (noise**-2 + self.noised.noise_multiplier**-2) ** -0.5
        return Charge(
            noise_multiplier=noise,
            sampling_rate=self.privacy.sampling_rate,
            steps=self.steps,
        )


def plan_round(
    job: Job,
    server_round: int,
    records: int,
    *,
    site: str,
    proximal_mu: float | None = None,
    release: Release = NOTHING_ELSE,
) -> LocalPlan:
    """The plan of ``job`` for one round at a site with ``records`` training records.

    In a private job an epoch is ``ceil(1 / sampling_rate)`` steps, so that each record is drawn
    once in expectation. Where the job leaves it to the site, the sampling rate is
    ``batch_size / records``: then it, the steps of an epoch and calibrated noise are functions
    of the number of records. A job that fixes ``sampling_rate``, ``steps`` and
    ``noise_multiplier`` makes plans that are functions of nothing private.

    The job's noise multiplier, or the one that its target epsilon takes, is that of all that a
    step gives away: where training metrics leave too, gradients get a little more noise. A target
    epsilon covers the run's evaluations as well.

    Args:
        server_round: counted from 1.
        site: the site's name, which sets its random order apart from that of others.
        proximal_mu: what the strategy asks for; the job's own if None.
        release: what the site lets out with noise beside its updates.

    Raises:
        DataError: if there are no records.
        CalibrationError: if no noise reaches the job's target epsilon.
    """
    if records < 1:
        raise DataError("the site has no training records", remedy="Check [data] in site.toml.")
    training = job.training
    sampled_at = _sampling_rate(job, records)
    steps = steps_of(job, records)
    privacy, noised = None, None
    if job.privacy.private:
        whole = _noise_multiplier(job, sampled_at, steps, release)
        privacy, noised = _mechanisms(job, whole, sampled_at, release, steps * records)
    return LocalPlan(
        steps=steps,
        batch_size=training.batch_size,
        privacy=privacy,
        noised=noised,
        optimizer=training.optimizer,
        lr=training.optimizer.lr * scheduled(training.schedule, server_round, job.rounds),
        loss=training.loss,
        augment=training.augment,
        proximal_mu=training.proximal_mu if proximal_mu is None else proximal_mu,
        seed=_seed(job.seed, server_round, site),
    )


def rounding_seed(job: Job, server_round: int, site: str) -> int:
    """Seed of what stochastic rounding an update goes through on its way out.

    Others may know it: what is rounded has its noise already.
    """
    return _seed(job.seed, server_round, f"{site}:rounding")


def scheduled(schedule: Schedule, server_round: int, rounds: int) -> float:
    """What the learning rate of a round is multiplied by, in [0, 1].

    Args:
        server_round: counted from 1; beyond ``rounds`` the last value stays.
    """
    if server_round <= schedule.warmup:
        return server_round / (schedule.warmup + 1)
    since = server_round - schedule.warmup - 1
    if schedule.name == "step":
        return float(schedule.gamma ** (since // schedule.every))
    last = max(rounds - schedule.warmup - 1, 1)
    progress = min(since / last, 1.0)
    match schedule.name:
        case "cosine":
            remaining = (1.0 + math.cos(math.pi * progress)) / 2.0
        case "linear":
            remaining = 1.0 - progress
        case _:
            return 1.0
    return schedule.final + (1.0 - schedule.final) * remaining


def _sampling_rate(job: Job, records: int) -> float:
    return job.privacy.sampling_rate or min(1.0, job.training.batch_size / records)


def steps_of(job: Job, records: int) -> int:
    """The steps of one round at a site with ``records`` training records."""
    training = job.training
    if job.privacy.private and job.privacy.sampling_rate is not None:
        return training.private_steps(job.privacy.sampling_rate)
    return training.steps or (training.epochs or 1) * math.ceil(records / training.batch_size)


def _noise_multiplier(job: Job, sampling_rate: float, steps: int, release: Release) -> float:
    """Of all that a step gives away."""
    privacy = job.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    if privacy.target_epsilon is None:
        raise ValueError("a private job has a noise_multiplier or a target_epsilon")
    return calibrate_noise(
        privacy.target_epsilon,
        privacy.delta,
        sampling_rate,
        steps * job.rounds,
        beside=release.beside,
    )


def _mechanisms(
    job: Job, whole: float, sampling_rate: float, release: Release, records_in_steps: int
) -> tuple[PrivateSteps, NoisedMetrics | None]:
    """Share a step's noise multiplier out between its gradients and its metrics."""
    gradients = whole
    if release.training:
        # A hair more, so that rounding never makes the two together cost more than the whole.
        gradients *= math.sqrt(1.0 + release.noise.training**-2) * (1.0 + 1e-12)
    steps = PrivateSteps(
        sampling_rate=sampling_rate,
        noise_multiplier=gradients,
        clipping_norm=job.privacy.clipping_norm,
    )
    expected = sampling_rate * records_in_steps
    return steps, release.of_training(release.noise.training * gradients, expected)


def _seed(seed: int, server_round: int, site: str) -> int:
    digest = hashlib.sha256(f"{seed}:{server_round}:{site}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits

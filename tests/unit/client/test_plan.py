"""Plans: steps, rates, noise, learning rates and seeds from a job, a round and a record count."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hanse.errors import CalibrationError, DataError
from hanse.job import Job, Schedule
from hanse.privacy.accounting import Charge, epsilon
from hanse_client.plan import plan_round, scheduled
from hanse_client.release import Release
from hanse_client.site import Noise


def a_job(*, rounds: int = 10, privacy: dict[str, Any] | None = None, **training: Any) -> Job:
    training = {"batch_size": 32, "epochs": 1} | training
    if "steps" in training:
        del training["epochs"]
    return Job.model_validate(
        {
            "name": "test",
            "rounds": rounds,
            "seed": 7,
            "task": {"name": "tabular"},
            "training": training,
            "privacy": privacy or {"noise_multiplier": 1.0},
        }
    )


PUBLIC = {"mechanism": "none"}


@pytest.mark.parametrize(
    ("records", "rate", "steps"), [(96, 32 / 96, 3), (97, 32 / 97, 4), (32, 1.0, 1), (5, 1.0, 1)]
)
def test_a_private_epoch_draws_each_record_once_in_expectation(
    records: int, rate: float, steps: int
) -> None:
    plan = plan_round(a_job(), 1, records, site="a")
    assert plan.privacy is not None
    assert (plan.privacy.sampling_rate, plan.steps) == (rate, steps)
    assert plan.batch_size == 32  # the normaliser, whatever the number of records
    assert plan.charge == Charge(noise_multiplier=1.0, sampling_rate=rate, steps=steps)


@pytest.mark.parametrize(("rate", "steps"), [(0.1, 10), (0.3, 4), (1.0, 1), (1 / 49, 49)])
def test_a_rate_that_the_job_fixes_sets_the_epoch(rate: float, steps: int) -> None:
    job = a_job(privacy={"noise_multiplier": 1.0, "sampling_rate": rate}, epochs=2)
    plans = [plan_round(job, 1, records, site="a") for records in (50, 5000)]
    assert plans[0] == plans[1]
    assert plans[0].steps == 2 * steps


@pytest.mark.parametrize(("records", "steps"), [(96, 6), (97, 8), (5, 2)])
def test_an_epoch_without_privacy_covers_the_records(records: int, steps: int) -> None:
    plan = plan_round(a_job(privacy=PUBLIC, epochs=2), 1, records, site="a")
    assert plan.steps == steps
    assert plan.privacy is None
    assert plan.charge is None


@pytest.mark.parametrize("privacy", [PUBLIC, {"noise_multiplier": 1.0}])
def test_steps_are_what_the_job_says(privacy: dict[str, Any]) -> None:
    assert plan_round(a_job(privacy=privacy, steps=17), 1, 1000, site="a").steps == 17


def test_a_target_epsilon_is_calibrated_for_the_whole_run() -> None:
    job = a_job(rounds=20, privacy={"target_epsilon": 2.0, "delta": 1e-6}, steps=5)
    plans = [plan_round(job, number, 640, site="a") for number in (1, 20)]
    assert plans[0].charge == plans[1].charge
    assert plans[0].charge is not None
    assert 1.96 < epsilon([plans[0].charge] * 20, 1e-6) <= 2.0


def test_what_leaves_beside_the_steps_is_in_their_noise_multiplier() -> None:
    job = a_job(privacy={"noise_multiplier": 1.5, "sampling_rate": 0.1}, steps=7)
    release = Release(training=("train_loss",), noise=Noise(training=2.0))
    plan = plan_round(job, 1, 640, site="a", release=release)
    assert plan.privacy is not None
    assert plan.noised is not None
    assert plan.privacy.noise_multiplier == pytest.approx(1.5 * math.sqrt(1 + 1 / 4))
    assert plan.noised.noise_multiplier == pytest.approx(2 * plan.privacy.noise_multiplier)
    assert plan.charge is not None
    assert 1.5 <= plan.charge.noise_multiplier < 1.5 + 1e-9
    assert plan.noised.records is None
    public = plan_round(job, 1, 640, site="a", release=replace(release, public_count=True))
    assert public.noised is not None
    assert public.noised.records == pytest.approx(640 * 0.1 * 7)


def test_a_target_epsilon_covers_the_evaluations_of_the_run() -> None:
    job = a_job(rounds=20, privacy={"target_epsilon": 2.0, "delta": 1e-6}, steps=5)
    release = Release(
        training=("train_loss",), evaluation=("loss",), evaluations=20, noise=Noise(evaluation=15.0)
    )
    charge = plan_round(job, 1, 640, site="a", release=release).charge
    assert charge is not None
    assert release.evaluation_charge is not None
    assert 1.96 < epsilon([charge] * 20 + [release.evaluation_charge] * 20, 1e-6) <= 2.0


def test_a_target_out_of_reach_is_refused() -> None:
    job = a_job(rounds=1_000_000, privacy={"target_epsilon": 1e-5}, steps=100)
    with pytest.raises(CalibrationError, match="target_epsilon=1e-05"):
        plan_round(job, 1, 10, site="a")


def test_no_records_is_an_error() -> None:
    with pytest.raises(DataError, match="no training records"):
        plan_round(a_job(), 1, 0, site="a")


def test_seeds_differ_by_site_and_round_and_repeat_otherwise() -> None:
    job = a_job()
    seeds = {plan_round(job, r, 96, site=s).seed for r in (1, 2, 3) for s in ("a", "b")}
    assert len(seeds) == 6
    assert plan_round(job, 2, 96, site="b").seed in seeds
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert plan_round(job.model_copy(update={"seed": 8}), 1, 96, site="a").seed not in seeds


def test_the_strategys_proximal_mu_overrides_the_jobs() -> None:
    job = a_job(proximal_mu=0.5)
    assert plan_round(job, 1, 96, site="a").proximal_mu == 0.5
    assert plan_round(job, 1, 96, site="a", proximal_mu=0.1).proximal_mu == 0.1
    assert plan_round(job, 1, 96, site="a", proximal_mu=0.0).proximal_mu == 0.0


def test_the_learning_rate_is_the_rounds() -> None:
    job = a_job(rounds=3, optimizer={"lr": 0.4}, schedule={"name": "linear", "final": 0.5})
    rates = [plan_round(job, number, 96, site="a").lr for number in (1, 2, 3)]
    assert rates == pytest.approx([0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1, 1, 1, 1, 1]),
        (Schedule(warmup=2), [1 / 3, 2 / 3, 1, 1, 1]),
        (Schedule(name="step", gamma=0.5, every=2), [1, 1, 0.5, 0.5, 0.25]),
        (Schedule(name="linear", final=0), [1, 0.75, 0.5, 0.25, 0]),
        (Schedule(name="linear", final=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (
            Schedule(name="cosine", final=0.1),
            [0.1 + 0.45 * (1 + math.cos(math.pi * i / 4)) for i in range(5)],
        ),
        (Schedule(name="linear", final=0, warmup=2), [1 / 3, 2 / 3, 1, 0.5, 0]),
        (Schedule(name="linear", warmup=4), [0.2, 0.4, 0.6, 0.8, 1]),
        (Schedule(name="cosine", warmup=9), [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_schedules_over_five_rounds(schedule: Schedule, expected: list[float]) -> None:
    assert [scheduled(schedule, r, 5) for r in range(1, 6)] == pytest.approx(expected)


def test_rounds_beyond_the_last_stay_at_its_rate() -> None:
    assert scheduled(Schedule(name="cosine", final=0.3), 9, 5) == pytest.approx(0.3)

"""The mathematics of the empirical audit: its bound, its band, its guesses, its verdict."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hanse.errors import AuditError, JobError
from hanse.job import Job
from hanse.privacy.accounting import Charge, epsilon
from hanse_client.canaries import audit as audits
from hanse_client.canaries.band import Band, bands, false_alarms, fixed_guesses, simulated
from hanse_client.canaries.bound import epsilon_at_least, p_value, refuting
from hanse_client.canaries.design import GROUPS, Design, simulate
from hanse_client.canaries.scores import Scores, measure, right_guesses
from hanse_client.canaries.verdict import Audit, Finding
from hanse_client.canaries.view import audit_result, audit_view
from rich.console import Console
from scipy import stats

CPU = torch.device("cpu")
GAUSSIAN = Charge(noise_multiplier=4.0, sampling_rate=1.0, steps=16)
SAMPLED = Charge(noise_multiplier=1.0, sampling_rate=0.1, steps=50)
DESIGN = Design(canaries=200, group=20)


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's randomness from a seed, which only tests can do."""
    monkeypatch.setattr(os, "urandom", random.Random(1).randbytes)


# --- the bound ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "expected"),
    [
        (100, 100, 75, 0.0, 0.702),
        (100, 100, 75, 1e-4, 0.699),
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.675),
    ],
)
def test_the_bound_is_that_of_the_papers_examples(
    canaries: int, guesses: int, right: int, delta: float, expected: float
) -> None:
    found = epsilon_at_least(canaries=canaries, guesses=guesses, right=right, delta=delta)
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_p_value_is_that_of_the_papers_example() -> None:
    found = p_value(canaries=100, guesses=100, right=75, epsilon=math.log(3), delta=0.0)
    assert found == pytest.approx(0.553, abs=1e-3)


def test_the_correction_for_delta_is_the_largest_of_its_terms() -> None:
    epsilon, delta, canaries, guesses, right = 1.0, 1e-3, 40, 30, 27
    chance = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    terms = [sum(chance.pmf(w) for w in range(right - i, right)) / i for i in range(1, right + 1)]
    expected = chance.sf(right - 1) + 2 * canaries * delta * max(terms)
    found = p_value(canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(expected)


def test_what_is_proved_is_refuted_and_no_more() -> None:
    guessed = {"canaries": 500, "guesses": 100, "right": 80}
    proved = epsilon_at_least(**guessed, delta=1e-5)
    assert p_value(**guessed, epsilon=proved, delta=1e-5) <= 0.05
    assert p_value(**guessed, epsilon=proved + 1e-4, delta=1e-5) > 0.05
    assert epsilon_at_least(**guessed, delta=1e-5, confidence=0.999) < proved


def test_guesses_no_better_than_chance_prove_nothing() -> None:
    assert epsilon_at_least(canaries=100, guesses=100, right=50, delta=0.0) == 0.0
    assert epsilon_at_least(canaries=100, guesses=100, right=0, delta=0.0) == 0.0
    assert p_value(canaries=10, guesses=10, right=0, epsilon=1.0, delta=0.1) == 1.0


def test_with_a_delta_of_one_nothing_is_refuted() -> None:
    assert epsilon_at_least(canaries=100, guesses=100, right=100, delta=1.0) == 0.0


@pytest.mark.parametrize("guessed", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_impossible_counts_are_refused(guessed: tuple[int, int, int]) -> None:
    canaries, guesses, right = guessed
    with pytest.raises(ValueError, match="do not rise"):
        p_value(canaries=canaries, guesses=guesses, right=right, epsilon=1.0, delta=0.0)


def test_the_bound_holds_for_randomised_response_which_it_is_tight_for() -> None:
    """The mechanism that tells each coin with probability 1 / (1 + exp(-epsilon)) rightly."""
    told_rightly = 1 / (1 + math.exp(-1.0))
    drawn = np.random.default_rng(1)
    right, runs = np.unique(drawn.binomial(400, told_rightly, 5000), return_counts=True)
    proved = np.array(
        [epsilon_at_least(canaries=400, guesses=400, right=int(v), delta=0.0) for v in right]
    )
    assert 0.03 < runs[proved > 1.0].sum() / 5000 < 0.06
    assert (proved * runs).sum() / 5000 > 0.75


# --- scores and statistics ------------------------------------------------------------------


def test_statistics_of_scores_worked_out_by_hand() -> None:
    scores = Scores(
        included=np.array([[True, False, True, False]]),
        canaries=np.array([[5.0, -1.0, 1.0, 3.0]]),
        groups=np.array([[10.0, 14.0]]),
    )
    found = {name: float(values[0]) for name, values in measure(scores, 2)}
    assert found == {"gap": 2.0, "noise": 2.0, "fillers": 12.0, "spread": 2.0, "right": 2.0}
    assert right_guesses(scores, 4).tolist() == [2.0]  # of the middle two both are wrong


def test_a_run_without_a_canary_in_or_out_has_statistics() -> None:
    for included in (True, False):
        scores = Scores(
            included=np.full((1, 4), included),
            canaries=np.ones((1, 4)),
            groups=np.ones((1, 2)),
        )
        assert all(np.isfinite(values).all() for _, values in measure(scores, 2))


@pytest.mark.parametrize("charge", [GAUSSIAN, SAMPLED])
def test_the_ideal_mechanism_has_the_moments_of_its_charge(charge: Charge) -> None:
    scores = simulate(charge, DESIGN, 2000)
    noise = charge.steps * charge.noise_multiplier**2
    drawn = charge.steps * charge.sampling_rate
    variance = drawn * (1 - charge.sampling_rate)
    inside, outside = scores.canaries[scores.included], scores.canaries[~scores.included]
    for values, mean, deviation in (
        (outside, 0.0, noise**0.5),
        (inside, drawn, (noise + variance) ** 0.5),
        (scores.groups.ravel(), 20 * drawn, (noise + 20 * variance) ** 0.5),
    ):
        assert abs(values.mean() - mean) < 6 * deviation / len(values) ** 0.5
        assert values.std() == pytest.approx(deviation, rel=6 / (2 * len(values)) ** 0.5)
    assert abs(scores.included.mean() - 0.5) < 6 * 0.5 / scores.included.size**0.5


def test_batches_are_of_moderate_size_whatever_the_sampling_rate() -> None:
    for rate in (1.0, 0.3, 0.02, 1e-6):
        design = Design.of(1000, rate)
        assert 10 <= design.group <= 200
        assert rate * (500 + GROUPS * design.group) <= 1500
        assert design.directions == 1100


# --- guesses and bands ----------------------------------------------------------------------


def test_guesses_are_few_where_there_is_noise_and_all_where_nothing_can_be_proved() -> None:
    design = Design(canaries=1000, group=10)
    noisy = fixed_guesses(GAUSSIAN, design, claimed=0.0, delta=1e-5)
    assert 0 < noisy <= 400
    assert noisy % 2 == 0
    hopeless = replace(GAUSSIAN, noise_multiplier=1000.0)
    assert fixed_guesses(hopeless, design, claimed=0.0, delta=1e-5) == 1000


def test_guesses_are_enough_to_refute_the_claim_if_all_are_right() -> None:
    design = Design(canaries=1000, group=10)
    for claimed in (1.0, 3.0, 4.5):
        guesses = fixed_guesses(GAUSSIAN, design, claimed=claimed, delta=1e-5)
        guessed = {"canaries": 1000, "guesses": guesses}
        assert epsilon_at_least(**guessed, right=guesses, delta=1e-5) > claimed
    assert fixed_guesses(GAUSSIAN, design, claimed=50.0, delta=1e-5) <= 400  # none can


def test_so_many_right_guesses_refute_a_claim_and_no_fewer() -> None:
    guessed = {"canaries": 500, "guesses": 200}
    fewest = refuting(**guessed, claimed=1.5, delta=1e-5)
    assert epsilon_at_least(**guessed, right=fewest, delta=1e-5) > 1.5
    assert epsilon_at_least(**guessed, right=fewest - 1, delta=1e-5) <= 1.5
    assert refuting(**guessed, claimed=50.0, delta=1e-5) == 201


def test_a_correct_run_leaves_a_band_as_rarely_as_is_told() -> None:
    known = simulated(SAMPLED, DESIGN, 40, 300)
    limits = bands(known)
    fresh = simulated(SAMPLED, DESIGN, 40, 5000)
    for name, values in fresh:
        outside = sum(not limits[name].holds(value) for value in values) / len(values)
        assert outside < 0.03, name  # in the mean 2 / 301
    assert false_alarms(known, 41) == 11 / 301
    assert false_alarms(known, 0) == 311 / 301  # a claim that whatever is guessed refutes


def test_a_band_allows_for_a_margin_below_the_clipping_norm() -> None:
    certain = Charge(noise_multiplier=1e-9, sampling_rate=1.0, steps=10)
    limits = bands(simulated(certain, DESIGN, 40, 50))
    assert limits["gap"].holds(10.0 * (1 - 1e-3))
    assert limits["fillers"].holds(200.0 * (1 - 1e-3))
    assert not limits["gap"].holds(10.0 * (1 + 1e-3))
    assert not limits["fillers"].holds(200.0 * (1 - 1e-2))


def test_the_bound_of_the_ideal_mechanism_stays_below_its_epsilon() -> None:
    for charge in (GAUSSIAN, SAMPLED):
        claimed = epsilon([charge], 1e-5)
        guesses = fixed_guesses(charge, DESIGN, claimed=claimed, delta=1e-5)
        right = simulated(charge, DESIGN, guesses, 1000).right
        most = epsilon_at_least(
            canaries=200, guesses=guesses, right=int(np.quantile(right, 0.95)), delta=1e-5
        )
        assert most <= claimed


# --- jobs and verdicts ----------------------------------------------------------------------


def a_job(*, rounds: int = 2, steps: int = 3, **privacy: Any) -> Job:
    return Job.model_validate(
        {
            "name": "small",
            "rounds": rounds,
            "task": {"name": "x:Y"},
            "training": {"steps": steps, "batch_size": 20},
            "privacy": {"noise_multiplier": 1.0, "sampling_rate": 0.1} | privacy,
        }
    )


def test_a_job_without_privacy_is_refused_by_name() -> None:
    open_job = a_job(mechanism="none", noise_multiplier=None)
    with pytest.raises(JobError, match="small trains without privacy"):
        audits.audit(open_job, device=CPU)


def test_a_rate_that_is_left_to_the_site_takes_its_number_of_records() -> None:
    job = a_job(sampling_rate=None)
    with pytest.raises(JobError, match="sampling_rate") as refusal:
        audits.audit(job, device=CPU)
    assert "--records" in refusal.value.remedy
    assert audits.audit(
        job, records=200, canaries=100, simulations=10, device=CPU
    ).mechanism == Charge(noise_multiplier=1.0, sampling_rate=0.1, steps=6)


def test_of_a_long_run_the_beginning_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "MOST_STEPS", 5)
    found = audits.audit(a_job(rounds=3), canaries=100, simulations=10, device=CPU)
    assert (found.mechanism.steps, found.run_steps) == (5, 9)
    assert found.claimed == epsilon([found.mechanism], found.delta)
    assert "first 5 of 9 steps" in printed(found)


def an_audit(**changes: Any) -> Audit:
    settings: dict[str, Any] = {
        "job": "small",
        "mechanism": SAMPLED,
        "run_steps": 50,
        "clipping_norm": 1.0,
        "backend": "hooks",
        "device": "cpu",
        "canaries": 1000,
        "included": 493,
        "guesses": 100,
        "right": 80,
        "delta": 1e-5,
        "claimed": 3.0,
        "at_least": 1.0,
        "findings": (Finding(name="noise", value=7.0, band=Band(low=6.0, high=8.0)),),
        "false_alarms": 1e-3,
        "seconds": 3.0,
    }
    return Audit(**(settings | changes))


def printed(found: Audit) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(audit_view(found))
    return captured.get()


def test_an_audit_that_nothing_speaks_against_passes() -> None:
    found = an_audit()
    found.verify()
    assert found.faults == ()
    told = printed(found)
    assert "Nothing speaks against the claim: epsilon is at least 1 by the audit" in told
    assert "cannot prove" in told
    assert "one audit of 1000" in told
    assert json.loads(json.dumps(audit_result(found)))["passed"] is True


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"findings": (Finding(name="noise", value=3.5, band=Band(low=6.0, high=8.0)),)},
            "noise = 3.5 is outside the 6 to 8 of a correct engine",
        ),
        (
            {"at_least": 3.2},
            "80 right guesses of 100 prove an epsilon of at least 3.2, above the 3 that is claimed",
        ),
    ],
)
def test_an_audit_that_something_speaks_against_fails(changes: dict[str, Any], fault: str) -> None:
    found = an_audit(**changes)
    assert found.faults == (fault,)
    with pytest.raises(AuditError, match=fault):
        found.verify()
    assert "does not carry out the mechanism" in printed(found)
    assert audit_result(found)["passed"] is False


def test_a_value_that_is_not_a_number_is_in_no_band() -> None:
    assert not Band(low=0.0, high=1.0).holds(float("nan"))

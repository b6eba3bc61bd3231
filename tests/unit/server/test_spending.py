"""What a run cost: computed from what is known, and not known where something is not."""

from __future__ import annotations

from typing import Any

import pytest
from hanse.job import Job
from hanse.privacy.accounting import Charge, epsilon, epsilon_bound
from hanse_server import spending
from hanse_server.costs import CLOSED_FORM, FAST, TARGET, TIGHT, Cost, DataSetCost, SiteCost
from hanse_server.history import RoundRecord, SiteRound, Terms
from hanse_server.spending import Spending
from hanse_server.statement import model_statement, rounded_up


def job(**privacy: Any) -> Job:
    return Job.model_validate(
        {
            "name": "trial",
            "rounds": 4,
            "task": {"name": "tabular"},
            "training": {"epochs": 1},
            "privacy": privacy or {"noise_multiplier": 2.0, "sampling_rate": 0.25},
            "evaluation": {"every": 2},
        }
    )


def took_part(terms: Terms | None = None, **metrics: float) -> SiteRound:
    return SiteRound(outcome="result", seconds=1.0, metrics=metrics, terms=terms or Terms())


def ended(outcome: str) -> SiteRound:
    return SiteRound(outcome=outcome, seconds=1.0)


def record(number: int, site: SiteRound | None, judged: SiteRound | None = None) -> RoundRecord:
    return RoundRecord(
        round=number,
        outcome="completed",
        started_at=0.0,
        seconds=1.0,
        sites={} if site is None else {"a": site},
        train={},
        federated={},
        central={},
        bytes_up=0,
        bytes_down=0,
        judged={} if judged is None else {"a": judged},
    )


def cost(of: Job, *records: RoundRecord, tight: bool = True) -> SiteCost:
    return Spending(of, records).costs(tight=tight)["a"]


NOISED = Terms(noised=("loss",), noise_multiplier=9.0, count="declared")


def test_a_job_that_fixes_all_is_computed_over_every_round_that_may_have_been_charged() -> None:
    found = cost(job(), *(record(number, took_part()) for number in (1, 2, 3)))
    charge = Charge(noise_multiplier=2.0, sampling_rate=0.25, steps=4 * 3)
    assert found.run is not None
    assert found.run.epsilon == epsilon([charge], 1e-5)
    assert found.run.accountant == TIGHT
    assert (found.steps, found.counted) == (4, 3)
    fast = cost(job(), *(record(number, took_part()) for number in (1, 2, 3)), tight=False)
    assert fast.run is not None
    assert fast.run.epsilon == epsilon_bound([charge], 1e-5) > found.run.epsilon
    assert fast.run.accountant == FAST


def test_training_in_a_session_that_was_lost_is_counted_too() -> None:
    again, refused = (SiteRound(outcome=o, seconds=1.0, earlier=2) for o in ("result", "policy"))
    assert cost(job(), record(1, again)).counted == 3
    found = cost(job(), record(1, took_part(epsilon=1.0)), record(2, refused))
    assert (found.asked, found.counted) == (4, 3)
    assert found.data_set is not None
    assert not found.data_set.complete


@pytest.mark.parametrize(
    "outcome", ["unprovable_model", "missing", "update", "diverged", "client_app", "task"]
)
def test_whoever_was_asked_and_did_not_refuse_is_counted(outcome: str) -> None:
    found = cost(job(), record(1, took_part()), record(2, ended(outcome)))
    assert (found.asked, found.counted) == (2, 2)


def test_work_that_goes_on_over_rounds_is_counted_once_however_it_ends() -> None:
    late = SiteRound(outcome="result", seconds=1.0, staleness=2)
    at_work = [record(number, ended("working")) for number in (2, 3)]
    before = record(1, took_part(epsilon=1.0))
    for after in ([], [record(4, late)], [record(4, ended("lost"))]):
        found = cost(job(), before, *at_work, *after)
        assert (found.asked, found.counted) == (2, 2)
        assert found.data_set is not None
        assert not found.data_set.complete


@pytest.mark.parametrize("outcome", sorted(spending.UNCHARGED))
def test_whoever_refused_is_not_counted(outcome: str) -> None:
    found = cost(job(), record(1, took_part()), record(2, ended(outcome), ended(outcome)))
    assert (found.asked, found.counted, found.evaluations) == (2, 1, 0)


def test_every_label_of_a_refusal_is_one_that_there_is() -> None:
    from hanse.errors import error_types

    assert {kind.label for kind in error_types()} >= spending.UNCHARGED


def test_noised_evaluations_are_counted_and_silence_after_one_is_too() -> None:
    records = [
        record(1, took_part()),
        record(2, None, took_part(NOISED, loss=0.5)),
        record(4, None, ended("missing")),
    ]
    found = cost(job(), *records)
    assert found.run is not None
    assert found.run.epsilon == epsilon(
        [
            Charge(noise_multiplier=2.0, sampling_rate=0.25, steps=4),
            Charge(noise_multiplier=9.0, sampling_rate=1.0, steps=2),
        ],
        1e-5,
    )
    (disclosed,) = found.disclosures
    assert (disclosed.name, disclosed.records) == ("loss", "held-out")
    assert (disclosed.kind, disclosed.noise_multiplier) == ("noised", 9.0)


def test_what_a_silent_evaluation_cost_is_not_known() -> None:
    assert cost(job(), record(1, took_part(), ended("missing"))).run is None


def test_a_rate_that_a_site_keeps_to_itself_is_not_guessed() -> None:
    asked = job(noise_multiplier=2.0)
    found = cost(asked, record(1, took_part()))
    assert (found.run, found.sampling_rate, found.steps) == (None, None, None)
    told = cost(asked, record(1, took_part(sampling_rate=1.0, steps=3.0)))
    assert told.run is not None
    assert told.run.accountant == CLOSED_FORM


def test_a_target_holds_for_what_it_was_calibrated_for() -> None:
    asked = job(target_epsilon=2.5, sampling_rate=0.25)
    assert cost(asked, record(1, took_part())).run == Cost(
        epsilon=2.5, delta=1e-5, accountant=TARGET
    )
    judged_too_often = [record(n, None, ended("missing")) for n in (1, 2, 3)]
    assert cost(asked, *judged_too_often).run is None


def test_of_settings_that_change_the_costlier_counts() -> None:
    asked = job(target_epsilon=9.0)
    told = [
        took_part(noise_multiplier=3.0, sampling_rate=0.2, steps=5.0),
        took_part(noise_multiplier=2.0, sampling_rate=0.1, steps=4.0),
        took_part(noise_multiplier=4.0, sampling_rate=0.2, steps=5.0),
    ]
    found = cost(asked, *(record(number, site) for number, site in enumerate(told, 1)))
    assert (found.noise_multiplier, found.sampling_rate, found.steps) == (2.0, 0.2, 5)


def test_a_ledgers_word_is_complete_until_something_else_is_asked() -> None:
    told = took_part(epsilon=1.5, epsilon_left=0.5, delta=1e-5)

    def data_set(*records: RoundRecord) -> DataSetCost:
        found = cost(job(), *records).data_set
        assert found is not None
        return found

    assert data_set(record(1, told)).complete
    assert not data_set(record(1, told), record(2, took_part())).complete
    assert not data_set(record(1, told), record(2, ended("missing"))).complete
    assert data_set(record(1, told), record(2, ended("budget"))).complete
    assert data_set(record(1, told, took_part(Terms(exact=("auc",)), auc=0.5))).complete
    assert not data_set(record(1, told, took_part(NOISED, loss=0.5))).complete
    both = took_part(NOISED, loss=0.5, epsilon=1.6)
    assert data_set(record(1, told, both)).complete
    assert data_set(record(1, told, both)).epsilon == 1.6


def test_what_once_left_exactly_stays_told() -> None:
    exact = Terms(exact=("loss",))
    found = cost(
        job(),
        record(1, None, took_part(exact, loss=0.5)),
        record(2, None, took_part(NOISED, loss=0.5)),
    )
    assert [each.kind for each in found.disclosures] == ["exact"]


def test_many_different_sites_are_not_worth_minutes_of_the_tightest_accountant() -> None:
    spent = Spending(job())
    for number in range(1, 12):
        sites = {f"site-{index}": took_part() for index in range(number)}
        spent.fold(RoundRecord(**vars(record(number, None)) | {"sites": sites}))
    accountants = {each.run.accountant for each in spent.costs(tight=True).values() if each.run}
    assert accountants == {FAST}


def test_a_statement_says_it_in_sentences() -> None:
    exact = Terms(count="public", exact=("auc",))
    first = record(1, took_part(exact, epsilon=1.23456), took_part(exact, auc=0.5))
    found = Spending(job(), [first]).costs(tight=True)
    stated = model_statement(job(), first, found)["privacy"]
    sentence = stated["sites"]["a"]["sentence"]
    assert f"epsilon at most {rounded_up(found['a'].run.epsilon)} at delta 1e-05" in sentence  # type: ignore[union-attr]
    assert "cost epsilon 1.2346 at a delta that it did not release" in sentence
    assert "As they are, outside epsilon, it released auc of held-out records." in sentence
    assert "It makes the number of its records public." in sentence
    unknown = Spending(job(noise_multiplier=2.0), [record(1, took_part(train_loss=1.0))])
    told = model_statement(job(), first, unknown.costs(tight=True))["privacy"]["sites"]["a"]
    assert "What this run cost a record of a is not known here" in told["sentence"]
    assert "How it released train_loss of training records is not known" in told["sentence"]
    assert "Whether its weight tells the number of its records is not known." in told["sentence"]


@pytest.mark.parametrize(("epsilon_", "written"), [(3.0, "3"), (1.23451, "1.2346"), (0.0, "0")])
def test_an_epsilon_is_never_rounded_down(epsilon_: float, written: str) -> None:
    assert rounded_up(epsilon_) == written

"""What the report of a run says of privacy: never more than is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanse.aggregation import SecureAggregation
from hanse.job import (
    Privacy,
)
from hanse_server.history import SiteRound, Terms

from tests.reports import NO_PRIVACY, PRIVATE, Run, job, record, result, stated, three_rounds


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_privacy_is_never_rounded_in_its_own_favour(run: Run) -> None:
    run.write(job(), three_rounds())
    page = run.report()
    cleveland = page.table("What each site did").row("cleveland")
    assert cleveland["Epsilon spent"] == "3.00"  # 2.9981
    assert cleveland["Epsilon left"] == "0.0019"
    assert "epsilon at most 3.00" in page.text


def test_private_run_states_its_guarantee(run: Run) -> None:
    told = stated(2.5, noise_multiplier=4.0)
    run.write(job(rounds=1), [record(1, {name: result(told) for name in ("a", "b")})])
    page = run.report()
    # One Gaussian mechanism of noise multiplier 4 costs 0.9263 at delta 1e-5.
    assert (
        "In this run each record of every site is protected by differential privacy with epsilon "
        "at most 0.93 (delta 10⁻⁵)" in page.text
    )
    assert "a factor of 2.6," in page.text  # e to the 0.9263 is 2.525
    assert (
        "Over all that was ever done with the same data it is at most 2.50, by the ledger of "
        "every site." in page.text
    )
    assert "Epsilon of this run, highest at a site 0.93" in page.text
    assert "over all runs 2.50, by sites’ own ledgers" in page.text
    assert "Clipping norm 2 (L2)" in page.text
    assert "add-or-remove adjacency" in page.text
    assert "epsilon 3 over all rounds, delta 10⁻⁵, sampling rate 1" in page.text
    assert "No privacy" not in page.text
    assert not page.with_class("bad")


def test_what_a_site_keeps_to_itself_is_not_released(run: Run) -> None:
    run.write(job(), three_rounds())
    page = run.report()
    assert page.table("Everything ever done").row("hungary") == {
        "Site": "hungary",
        "Epsilon": "1.50",
        "Left of its budget": "not released",
        "Delta": "not released",
        "Stated in round": "3",
    }
    assert page.table("Computed here").row("hungary") == {
        "Site": "hungary",
        "Epsilon": "3.00",
        "Delta": "10⁻⁵",
        "Found by": "the job’s target",
        "Noise multiplier": "not known",
        "Sampling rate": "1",
        "Steps of a round": "1",
        "Rounds charged": "3 of 3",  # the one without a reply, too: it may have trained
        "Evaluations charged": "none",
    }


def test_claims_nothing_for_a_site_that_stopped_telling(run: Run) -> None:
    records = [
        record(1, {"a": result(stated(0.5)), "b": result(stated(0.4))}),
        record(2, {"a": result(), "b": result(stated(0.8))}),
    ]
    run.write(job(rounds=2), records)
    page = run.report()
    assert "it is at most 0.80, by the ledger of 1 of 2 sites" in page.text
    assert page.table("Everything ever done").row("a") == {
        "Site": "a",
        "Epsilon": "0.50",
        "Left of its budget": "2.50",
        "Delta": "10⁻⁵",
        "Stated in round": "1 it took part after that",
    }


UNSAID = Privacy(noise_multiplier=2.0)
"""Leaves the sampling rate to sites: who does not know it knows no epsilon."""


def test_what_a_run_cost_is_not_known_where_no_setting_was_released(run: Run) -> None:
    run.write(job(rounds=1, privacy=UNSAID), [record(1, {"a": result(), "b": result()})])
    page = run.report()
    assert "What this run cost is not known here" in page.text
    assert "highest at a site – not known" in page.text
    assert page.table("Computed here").row("a")["Epsilon"] == "not known"
    assert "protected by differential privacy" not in page.text


def test_a_site_of_which_it_is_not_known_is_told_apart(run: Run) -> None:
    sites = {"a": result({"sampling_rate": 0.5}), "b": result()}
    run.write(job(rounds=1, privacy=UNSAID), [record(1, sites)])
    page = run.report()
    assert "In this run each record of 1 site below is protected" in page.text
    assert "Of 1 further site it is not known." in page.text
    assert "No site released what all runs together cost its data." in page.text


def test_a_site_that_refused_is_not_counted_and_one_that_is_silent_is(run: Run) -> None:
    told = stated(1.0, noise_multiplier=4.0)
    refused = SiteRound(outcome="budget", seconds=0.1, reason="budget")
    silent = SiteRound(outcome="missing", seconds=9.0)
    late = [refused, silent, SiteRound(outcome="diverged", seconds=0.1)]
    records = [record(1, {"a": result(told), "b": result(told)})]
    records += [
        record(number, {"a": result(told), "b": other}) for number, other in enumerate(late, 2)
    ]
    run.write(job(rounds=4), records)
    rows = run.report().table("Computed here")
    assert rows.row("a")["Rounds charged"] == "4 of 4"
    assert rows.row("b")["Rounds charged"] == "3 of 4"
    assert rows.row("a")["Found by"] == "closed form"


def test_noised_evaluations_are_part_of_the_run(run: Run) -> None:
    told = stated(1.0, noise_multiplier=4.0)
    terms = Terms(count="declared", noised=("loss",), noise_multiplier=5.0)
    records = [
        record(
            number,
            {"a": result(told), "b": result(told)},
            judged={"a": result({"loss": 0.5} | told, terms=terms), "b": result()},
            federated={"loss": 0.5},
        )
        for number in (1, 2)
    ]
    run.write(job(rounds=2), records)
    page = run.report()
    assert "on the sites’ held-out records, with noise, round 2" in page.text
    rows = page.table("Computed here")
    assert rows.row("a")["Evaluations charged"] == "2 at noise 5"
    assert rows.row("b")["Evaluations charged"] == "none"
    assert float(rows.row("a")["Epsilon"]) > float(rows.row("b")["Epsilon"])
    outside = page.text.partition("What else left the sites")[2]
    assert (
        "loss of held-out records left with noise, within epsilon (noise multiplier 5), at 1"
        in (outside)
    )


def test_names_what_left_outside_epsilon(run: Run) -> None:
    run.write(job(), three_rounds(update_norm=0.7, sampling_rate=1.0))
    page = run.report()
    outside = page.text.partition("What else left the sites")[2].partition("Settings of the")[0]
    assert (
        "train_loss of training records left in a way that is not known: take it to be outside "
        "epsilon, at 1 site" in outside
    )
    # The server has the update, and with it the norm; the sampling rate is the job's own.
    assert "update_norm" not in outside
    assert "sampling_rate" not in outside


def test_what_left_exactly_stands_first_and_a_public_count_is_told(run: Run) -> None:
    exact = Terms(count="public", exact=("auc",), noised=("loss",), noise_multiplier=50.0)
    judged = {name: result({"auc": 0.9, "loss": 0.4}, terms=exact) for name in ("a", "b")}
    sites = {name: result(terms=Terms(count="public")) for name in ("a", "b")}
    run.write(job(rounds=1), [record(1, sites, judged=judged)])
    page = run.report()
    released = page.text.partition("What else left the sites")[2].partition("Settings of the")[0]
    assert "num-examples is the number of records, which 2 sites make public" in released
    assert "auc of held-out records left as it is, outside epsilon, at 2 sites" in released
    assert released.index("auc of") < released.index("loss of")
    assert "It does not cover metrics that 2 sites released besides." in page.text
    assert len(page.with_class("exact")) == 2


def test_a_sampling_rate_that_tells_the_number_of_records_is_a_release(run: Run) -> None:
    privacy = Privacy(noise_multiplier=2.0)
    run.write(job(privacy=privacy), three_rounds(sampling_rate=0.064))
    page = run.report()
    assert "sampling_rate tells the number of training records, at 1 site" in page.text
    assert "noise multiplier 2, delta 10⁻⁵" in page.text


def test_no_privacy_stands_in_red_at_the_top_and_in_the_statement(run: Run) -> None:
    sites = {"a": result(), "b": result()}
    run.write(job(rounds=1, privacy=NO_PRIVACY), [record(1, sites, federated={"accuracy": 0.8})])
    page = run.report()
    head, _, rest = page.text.partition("Over the rounds")
    statement = rest.partition("Privacy statement")[2].partition("Settings of the job")[0]
    for place in (head, statement):
        assert "No privacy This model was trained without differential privacy." in place
    assert "protected by" not in page.text
    classes = [attrs.get("class") for attrs in page.with_class("bad")]
    assert classes.count("banner bad") == 2
    assert "Epsilon spent" not in page.table("What each site did").header


@pytest.mark.parametrize(
    ("privacy", "told"),
    [(PRIVATE, "every epsilon here holds without it"), (NO_PRIVACY, "no differential privacy")],
)
def test_says_what_secure_aggregation_hid(run: Run, privacy: Privacy, told: str) -> None:
    summed = job(rounds=1, privacy=privacy, secure_aggregation=SecureAggregation(enabled=True))
    run.write(summed, [record(1, {"a": result(update_norm=None)})])
    page = run.report()
    assert "Secure aggregation Of the updates of a round the server learnt no more" in page.text
    assert told in page.text
    assert "Nothing but masked updates" in page.text
    assert page.table("What each site did").row("a")["Last update (L2 norm)"] == "–"


def test_says_nothing_of_secure_aggregation_where_there_is_none(run: Run) -> None:
    run.write(job(rounds=1), [record(1, {"a": result()})])
    assert "ecure aggregation" not in run.report().text.partition("Settings of the job")[0]

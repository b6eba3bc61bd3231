"""The gates of a site: what gets in, what is charged, what gets out, and what is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context, MessageType, RecordDict
from hanse.errors import BudgetError, LedgerBrokenError, PolicyError, PrivacyRequiredError
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    METRICS,
    PROXIMAL_MU,
    TERMS,
    WEIGHT,
    Envelope,
    open_envelope,
    to_tensors,
)
from hanse.records import Records
from hanse_client.audit import read_audit, read_chained
from hanse_client.site import AllowedTask

from tests.harbour import RECORDS, TASK, Harbour, job


def test_a_round_is_trained_charged_and_let_out(harbour: Callable[..., Harbour]) -> None:
    here = harbour(release=("epsilon", "update_norm"), count="public")
    reply = here.send(job())
    update = to_tensors(reply.content.array_records[ARRAYS])
    metrics = dict(reply.content.metric_records[METRICS])
    assert set(update) == {"weight", "bias"}
    assert any(bool(change.any()) for change in update.values())
    assert set(metrics) == {WEIGHT, "epsilon", "update_norm"}
    assert metrics[WEIGHT] == RECORDS
    # While there is room the gate goes by the fast bound, which is never below the truth.
    assert 0 < here.spent() <= metrics["epsilon"] <= 1.2 * here.spent()  # type: ignore[operator]


def test_nothing_leaves_but_what_the_policy_lists(harbour: Callable[..., Harbour]) -> None:
    reply = harbour(release=(), count=3.0).send(job())
    assert dict(reply.content.metric_records[METRICS]) == {WEIGHT: 3.0}
    assert set(reply.content) == {ARRAYS, METRICS, TERMS}
    assert dict(reply.content.config_records[TERMS]) == {
        "count": "declared",
        "noised": [],
        "exact": [],
        "noise_multiplier": 0.0,
    }


def test_an_evaluation_lets_out_listed_metrics_and_no_arrays(
    harbour: Callable[..., Harbour],
) -> None:
    here = harbour(release=(), release_exact=("mae",))
    reply = here.send(job(), kind=MessageType.EVALUATE)
    assert set(reply.content) == {METRICS, TERMS}
    assert set(reply.content.metric_records[METRICS]) == {WEIGHT, "mae"}
    assert reply.content.config_records[TERMS]["exact"] == ["mae"]
    assert here.spent() == 0


@pytest.mark.parametrize(
    ("asked", "policy", "told"),
    [
        ({}, {"tasks": (AllowedTask(name="tabular"),)}, "policy.tasks"),
        ({}, {"tasks": (AllowedTask(name=TASK, digest="0" * 64),)}, "not the version"),
        ({"training": {"steps": 9}}, {"max_steps": 8}, "steps = 9 is above"),
        ({"rounds": 30}, {"max_rounds": 20}, "rounds = 30 is above"),
        ({}, {"min_noise_multiplier": 3.0}, "noise_multiplier = 2 is below"),
        ({}, {"max_clipping_norm": 0.5}, "clipping_norm = 1 is above"),
        ({}, {"max_model_mb": 1e-6}, "model size in MB"),
        ({"privacy": {"mechanism": "none"}}, {}, "allow_training_without_privacy"),
    ],
)
def test_the_policy_refuses_by_name_before_any_charge(
    harbour: Callable[..., Harbour], asked: dict[str, Any], policy: dict[str, Any], told: str
) -> None:
    here = harbour(**policy)
    reply = here.send(job(**asked))
    kind = PrivacyRequiredError if "privacy" in asked else PolicyError
    assert reply.error.code == kind.exit_code
    assert told in str(reply.error.reason)
    assert here.spent() == 0
    assert (
        here.metrics.registry.get_sample_value(
            "hanse_client_refusals_total", {"reason": kind.label}
        )
        == 1
    )


@pytest.mark.parametrize("batch_size", [1, 20, 40, 1000])
def test_no_refusal_tells_the_number_of_records(
    harbour: Callable[..., Harbour], batch_size: int
) -> None:
    """Whatever batch a server asks for, the answer is the same: it cannot bisect."""
    asked = job(
        training={"epochs": 3, "batch_size": batch_size},
        privacy={"target_epsilon": 2.5, "sampling_rate": None},
    )
    for kind in (MessageType.TRAIN, MessageType.EVALUATE):
        reply = harbour(max_steps=8, min_noise_multiplier=5.0).send(asked, kind=kind)
        assert "keeps its number of records to itself" in str(reply.error.reason)


def test_a_site_whose_count_is_public_works_out_the_rate_itself(
    harbour: Callable[..., Harbour],
) -> None:
    here = harbour(count="public")
    reply = here.send(job(privacy={"noise_multiplier": 2.0, "sampling_rate": None}))
    assert reply.has_content()
    assert here.ledger.entries()[0].charge.sampling_rate == 20 / RECORDS


def test_an_unexpected_failure_is_audited_by_its_type_alone(
    harbour: Callable[..., Harbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harbour()
    here.send(job())

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("age 93 divided by 0")

    monkeypatch.setattr(here.runtime.order.trainer, "train", fail)
    with pytest.raises(ZeroDivisionError):
        here.send(job(), number=2, name="b")
    last = read_audit(here.audit)[-1]
    assert (last["event"], last["id"], last["label"]) == ("failed", "b", "ZeroDivisionError")
    assert "divided" not in json.dumps(last)


def test_a_refusal_by_the_budget_tells_no_numbers(harbour: Callable[..., Harbour]) -> None:
    reply = harbour().send(job(privacy={"noise_multiplier": 0.6}))
    assert reply.error.reason == "budget"


def test_rounds_beyond_the_job_are_refused(harbour: Callable[..., Harbour]) -> None:
    assert "round 6" in str(harbour().send(job(), number=6).error.reason)


def test_fedprox_takes_no_number_that_is_not_one(harbour: Callable[..., Harbour]) -> None:
    reply = harbour().send(job(), more={PROXIMAL_MU: float("nan")})
    assert reply.error.code == PolicyError.exit_code


def test_a_round_beyond_the_budget_is_refused_and_not_charged(
    harbour: Callable[..., Harbour],
) -> None:
    here = harbour()
    errors = []
    for number in range(1, 6):
        before = here.spent()
        reply = here.send(job(), number=number, name=str(number))
        if reply.has_error():
            errors.append(reply.error.code)
            assert here.spent() == before
    assert errors
    assert set(errors) == {BudgetError.exit_code}
    assert 0 < here.spent() <= 3.0


def test_after_training_without_privacy_no_epsilon_is_claimed(
    harbour: Callable[..., Harbour],
) -> None:
    here = harbour(allow_training_without_privacy=True, release_exact=("*",))
    reply = here.send(job(privacy={"mechanism": "none"}), name="a")
    assert "epsilon" not in reply.content.metric_records[METRICS]
    assert here.spent() == 0
    stated = here.ledger.statement("f" * 64, here.runtime.site.budget)
    assert (stated.unprotected, stated.rounds) == (1, 0)
    private = here.send(job(), name="b").content.metric_records[METRICS]
    assert private["noise_multiplier"] == 2.0
    assert not {"epsilon", "epsilon_left"} & set(private)
    shown = here.metrics.registry.get_sample_value("hanse_client_epsilon_spent")
    assert shown == math.inf


def test_a_message_of_anybody_else_is_refused(harbour: Callable[..., Harbour]) -> None:
    here = harbour()
    envelope = Envelope(
        message_id="x", run_id=1, src_node_id=1, dst_node_id=2, message_type=MessageType.TRAIN
    )
    reply = here.app(open_envelope(envelope, RecordDict()), Context(1, 2, {}, RecordDict(), {}))
    assert "runs only Hanse's jobs" in str(reply.error.reason)


def test_a_query_tells_what_the_site_is(harbour: Callable[..., Harbour]) -> None:
    told = harbour().send(job(), kind=MessageType.QUERY).content.config_records[CONFIG]
    assert told["site"] == "harbour"
    assert told["device"]
    assert told["tasks"] == [TASK]


def test_everything_is_audited_and_a_change_shows(harbour: Callable[..., Harbour]) -> None:
    here = harbour(max_steps=2)
    here.send(job(), name="a")
    here.send(job(training={"steps": 3}), name="b")
    here.send(job(), kind=MessageType.EVALUATE, name="c")
    lines = read_chained(here.audit)
    assert [(line["event"], line.get("id")) for line in lines] == [
        ("account_opened", None),
        ("charged", "a"),
        ("released", "a"),
        ("charge_released", None),
        ("refused", "b"),
        ("released", "c"),
    ]
    assert lines[2]["arrays"] == 2
    here.audit.write_text(here.audit.read_text().replace('"arrays": 2', '"arrays": 1'))
    with pytest.raises(LedgerBrokenError, match="line 4 does not follow"):
        read_chained(here.audit)


def test_an_error_of_the_data_says_nothing_of_the_data(
    harbour: Callable[..., Harbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hanse.errors import DataError

    here = harbour()

    def read(task: Any) -> Records:
        raise DataError("row 7 of names.csv: 'Ada' is no number")

    monkeypatch.setattr(here.runtime, "_read", read)
    assert here.send(job()).error.reason == "data"


@pytest.mark.parametrize("kind", ["train.default", "evaluate.default", "query.default"])
def test_no_other_name_of_an_instruction_passes_the_gates(
    harbour: Callable[..., Harbour], kind: str
) -> None:
    here = harbour(release=("*",))
    reply = here.send(job(), kind=kind)
    assert reply.has_error()
    assert reply.error.code == PolicyError.exit_code
    assert here.ledger.entries() == []
    assert [line["event"] for line in read_audit(here.audit)] == ["refused"]


def test_a_job_nested_too_deeply_is_refused_by_name(harbour: Callable[..., Harbour]) -> None:
    at = harbour(release=("*",))
    reply = at.send(job(), more={JOB: "[" * 100_000})
    assert str(reply.error.reason).startswith("job: hanse.job is not JSON")


def test_a_model_is_refused_before_it_is_built_if_the_policy_allows_none_so_large(
    harbour: Callable[..., Harbour],
) -> None:
    """The model that came is small; the one that the job declares takes a terabyte."""
    at = harbour(tasks=(AllowedTask(name="image"),), max_model_mb=100.0)
    model = {"kind": "mlp", "hidden": [65_536] * 64}
    options = {"shape": [1, 4, 6], "classes": 3, "model": model}
    reply = at.send(job(task={"name": "image", "options": options}))
    assert "max_model_mb" in str(reply.error.reason)

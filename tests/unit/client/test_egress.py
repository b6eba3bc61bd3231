"""What leaves a site: nothing but what its policy lists, and in the way that it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from hanse.errors import BudgetError, DivergedError, UnprovableModelError
from hanse.flower import ARRAYS, METRICS, TERMS, WEIGHT, to_record
from hanse_client.audit import read_audit
from hanse_client.gates.egress import let_out
from hanse_client.release import PUBLIC_METRICS, Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.harbour import RECORDS, Harbour, Line, job

HELD_OUT = 10
Sites = Callable[..., Harbour]


def metrics(reply: Message) -> dict[str, Any]:
    return dict(reply.content.metric_records[METRICS])


def judge(here: Harbour, *, name: str = "a", **changes: Any) -> Message:
    return here.send(job(**changes), kind=MessageType.EVALUATE, name=name)


def exactly(here: Harbour) -> dict[str, Any]:
    """What a site without noise would say of the model that it was just sent."""
    order = here.runtime.order
    held_out = order.records.held_out
    assert held_out is not None
    with torch.no_grad():
        return order.trainer.task.metrics(
            order.trainer.model.module(*held_out.inputs), held_out.targets
        )


# --- evaluation ---------------------------------------------------------------------------


def test_a_listed_metric_of_an_evaluation_leaves_with_noise_and_is_charged(
    harbour: Sites,
) -> None:
    here = harbour(release=("loss", "mae", "worst", "epsilon"), noise={"evaluation": 30.0})
    reply = judge(here)
    assert set(metrics(reply)) == {WEIGHT, "loss", "mae", "epsilon"}
    terms = dict(reply.content.config_records[TERMS])
    assert terms == {
        "count": "declared",
        "noised": ["loss", "mae"],
        "exact": [],
        "noise_multiplier": 30.0,
    }
    (entry,) = here.ledger.entries()
    assert (entry.charge.noise_multiplier, entry.charge.sampling_rate) == (30.0, 1.0)
    assert entry.charge.steps == 1
    assert entry.state == "released"
    assert 0 < here.spent() <= metrics(reply)["epsilon"]
    (line,) = (line for line in read_audit(here.audit) if line["event"] == "released")
    assert line["kinds"] == {
        "public": ["epsilon"],
        "noised": ["loss", "mae"],
    }


def test_the_noise_is_fresh_and_of_the_size_that_is_charged(harbour: Sites) -> None:
    here = harbour(release=("mae",), noise={"evaluation": 0.5}, count="public")
    here.runtime.site = here.runtime.site.model_copy(
        update={"budget": here.runtime.site.budget.model_copy(update={"epsilon": 1e6})}
    )
    off = torch.tensor(
        [
            metrics(judge(here, name=str(number)))["mae"] - exactly(here)["mae"]
            for number in range(100)
        ]
    )
    assert len(set(off.tolist())) == 100
    # bound 10, noise 0.5 on the sum over 10 records
    assert float(off.std()) == pytest.approx(0.5 * 10 / HELD_OUT, rel=0.35)


@pytest.mark.parametrize("value", [torch.tensor(0.5), True, [0.5], "0.5"])
def test_a_metric_that_is_no_number_is_told_by_its_name(
    harbour: Sites, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    here = harbour(release_exact=("mae",))
    monkeypatch.setattr(Line, "metrics", lambda *_: {"mae": value})
    reply = judge(here)
    assert reply.has_error()
    said = f"'mae' of the task is a {type(value).__name__}, not a number"
    assert said in str(reply.error.reason)


def test_exact_metrics_leave_as_they_are_and_cost_nothing(harbour: Sites) -> None:
    here = harbour(release_exact=("mae", "worst"))
    told = metrics(judge(here))
    assert told == pytest.approx({WEIGHT: 1.0, **exactly(here)})
    assert here.ledger.entries() == []


def test_of_an_evaluation_of_which_nothing_may_leave_nothing_is_charged(harbour: Sites) -> None:
    here = harbour(release=("worst", "epsilon"))
    assert metrics(judge(here)) == {WEIGHT: 1.0}
    assert here.ledger.entries() == []


def test_a_budget_that_an_evaluation_would_pass_refuses_it(harbour: Sites) -> None:
    reply = judge(harbour(release=("mae",), noise={"evaluation": 0.2}))
    assert reply.error.code == BudgetError.exit_code


def test_a_metric_that_cannot_be_noised_is_told_of_once(
    harbour: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    here = harbour(release=("worst",))
    judge(here)
    judge(here, name="b", rounds=4)
    told = [record.getMessage() for record in caplog.records if "worst" in record.getMessage()]
    assert len(told) == 1
    assert "release_exact" in told[0]


def infinite_loss(self: Line, outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.full((len(targets),), math.inf) + 0 * outputs.sum()


def test_that_a_loss_is_not_finite_is_told_only_where_it_leaves_as_it_is(
    harbour: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanse_client.runtime.Trainer.check_metrics", lambda *arguments: None)
    monkeypatch.setattr(Line, "loss", infinite_loss)
    told = metrics(judge(harbour(release=("loss",), release_exact=("mae",))))
    assert set(told) == {WEIGHT, "loss", "mae"}
    assert 0.0 <= told["loss"] <= 5.0
    assert judge(harbour(release_exact=("loss",))).error.code == DivergedError.exit_code
    assert metrics(judge(harbour())) == {WEIGHT: 1.0}


def test_metrics_that_mix_records_are_refused_before_any_charge(
    harbour: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def centred(self: Line, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.mean()).abs().squeeze(1)

    monkeypatch.setattr(Line, "loss", centred)
    here = harbour(release=("loss",))
    assert judge(here).error.code == UnprovableModelError.exit_code
    assert here.ledger.entries() == []


# --- training -----------------------------------------------------------------------------


def test_metrics_of_training_leave_with_noise_within_the_charge_of_the_steps(
    harbour: Sites,
) -> None:
    here = harbour(release=("train_loss", "clipped_fraction", "noise_multiplier", "steps"))
    reply = here.send(job())
    told, order = metrics(reply), here.runtime.order
    assert set(told) == {WEIGHT, "train_loss", "clipped_fraction", "noise_multiplier", "steps"}
    assert (told["noise_multiplier"], told["steps"]) == (pytest.approx(2.0), 2)
    assert reply.content.config_records[TERMS]["noised"] == ["train_loss", "clipped_fraction"]
    assert order.plan.privacy is not None
    assert order.plan.noised is not None
    gradients, beside = order.plan.privacy.noise_multiplier, order.plan.noised.noise_multiplier
    assert beside == pytest.approx(10 * gradients)
    assert 2.0 <= (gradients**-2 + beside**-2) ** -0.5 < 2.0 + 1e-9
    shown = here.metrics.registry.get_sample_value("hanse_client_train_loss")
    assert shown != told["train_loss"]  # the administrator's own is exact


def test_exact_metrics_of_training_leave_only_where_they_are_listed_as_exact(
    harbour: Sites,
) -> None:
    here = harbour(release_exact=("train_loss",))
    told = metrics(here.send(job()))
    shown = here.metrics.registry.get_sample_value("hanse_client_train_loss")
    assert told == {WEIGHT: 1.0, "train_loss": shown}
    assert here.runtime.order.plan.noised is None


def test_without_privacy_a_listed_metric_leaves_as_it_is(harbour: Sites) -> None:
    here = harbour(allow_training_without_privacy=True, release=("train_loss", "update_norm"))
    reply = here.send(job(privacy={"mechanism": "none"}))
    assert set(metrics(reply)) == {WEIGHT, "train_loss", "update_norm"}
    assert reply.content.config_records[TERMS]["exact"] == ["train_loss", "update_norm"]


def test_a_target_epsilon_lasts_for_all_steps_and_all_evaluations(harbour: Sites) -> None:
    here = harbour(release=("loss", "train_loss"), noise={"evaluation": 10.0})
    asked = {"privacy": {"target_epsilon": 3.0, "sampling_rate": 1.0}, "evaluation": {"every": 2}}
    for number in range(1, 6):
        assert here.send(job(**asked), number=number, name=f"t{number}").has_content()
        if number in (2, 4, 5):
            assert judge(here, name=f"e{number}", **asked).has_content()
    assert 2.98 < here.spent() <= 3.0
    assert judge(here, name="one more", **asked).error.code == BudgetError.exit_code


# --- the gate -----------------------------------------------------------------------------

NAMES = st.sampled_from(
    [*sorted(PUBLIC_METRICS), "loss", "mae", "worst", "train_loss", "clipped_fraction", WEIGHT]
)
VALUES = st.floats(-1e6, 1e6) | st.integers(-5, 5) | st.lists(st.floats(0, 1), min_size=1)
SAID = st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=6)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Harbour]:
    """Sites with an order under way, for every kind of one: trained with privacy, and without."""
    from tests.harbour import site

    made = {}
    for private in (True, False):
        folder = tmp_path_factory.mktemp("harbour")
        here = Harbour(folder, site(folder, allow_training_without_privacy=True))
        here.send(job() if private else job(privacy={"mechanism": "none"}))
        made[private] = here
    return made


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    lists=st.sets(NAMES | st.just("*")).flatmap(
        lambda listed: st.tuples(st.just(listed), st.sets(st.sampled_from(sorted(listed) or ["*"])))
    ),
    said=st.fixed_dictionaries(dict.fromkeys(Kind, SAID) | {METRICS: SAID, "other": SAID}),
    private=st.booleans(),
    public_count=st.booleans(),
)
def test_no_metric_leaves_that_the_policy_does_not_list_for_its_kind(
    prepared: dict[bool, Harbour],
    lists: tuple[set[str], set[str]],
    said: dict[str, dict[str, Any]],
    private: bool,
    public_count: bool,
) -> None:
    runtime = prepared[private].runtime
    listed, exact = lists
    noised = listed - exact
    policy = runtime.site.policy.model_copy(
        update={
            "release": tuple(noised),
            "release_exact": tuple(exact),
            "count": "public" if public_count else 7.0,
        }
    )
    runtime.site = runtime.site.model_copy(update={"policy": policy})
    arrays: dict[str, Any] = {ARRAYS: to_record(runtime.order.trainer.model.module.state_dict())}
    arrays["more"] = ArrayRecord()
    records = {name: MetricRecord(values) for name, values in said.items()}
    released = let_out(runtime, RecordDict(arrays | records), MessageType.TRAIN)

    (record,) = released.content.metric_records.values()
    told = dict(record)
    assert told.pop(WEIGHT) == (RECORDS if public_count else 7.0)
    assert set(released.content) == {METRICS, TERMS, ARRAYS}
    for name, value in told.items():
        assert isinstance(value, int | float)
        (way,) = (kind for kind in Kind if name in released.kinds[kind])
        assert said[way][name] == value
        as_it_is = name in exact or ("*" in exact and name not in noised)
        with_noise = name in noised or ("*" in noised and name not in exact)
        if way is Kind.PUBLIC:
            assert name in PUBLIC_METRICS
            assert as_it_is or with_noise
        elif way is Kind.NOISED or private:
            assert as_it_is if way is Kind.EXACT else with_noise
        else:
            assert as_it_is or with_noise

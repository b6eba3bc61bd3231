"""The desk: replies that do not fit the model never reach a strategy."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import Array, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from hanse.aggregation import Checks
from hanse.errors import PolicyError, UpdateError
from hanse.flower import (
    ARRAYS,
    METRICS,
    TERMS,
    WEIGHT,
    Envelope,
    become_server_app,
    only_arrays,
    open_envelope,
    to_record,
    to_tensors,
)
from hanse.identity import node_id_of
from hanse_server.history import Terms
from hanse_server.metrics import ServerMetrics
from hanse_server.replies import ReplyDesk
from hanse_server.simulation.grid import LocalGrid
from hanse_server.strategies.average import only_metrics
from hanse_server.updates import specs_of
from prometheus_client import CollectorRegistry

MODEL = {"w": torch.zeros(2, 3), "n": torch.tensor(0)}
SITES = ("east", "north", "west")


class NoEngine:
    def execute(self, messages: Any) -> Any:
        raise AssertionError("nothing is executed here")

    def close(self) -> None:
        pass


def desk(metrics: ServerMetrics, checks: dict[str, Any] | None = None) -> ReplyDesk:
    grid = LocalGrid(1, SITES, NoEngine())
    become_server_app(1)
    content = RecordDict({ARRAYS: to_record(MODEL), "config": ConfigRecord()})
    messages = [Message(content, node_id_of(site), MessageType.TRAIN) for site in SITES]
    return ReplyDesk(
        messages,
        grid,
        metrics,
        specs=specs_of(to_record(MODEL)),
        checks=Checks.model_validate(checks or {}),
        deadline=60.0,
    )


def reply(site: str, content: RecordDict | Error) -> Message:
    envelope = Envelope(
        message_id="",
        run_id=1,
        src_node_id=node_id_of(site),
        dst_node_id=1,
        message_type=MessageType.TRAIN,
    )
    return open_envelope(envelope, content)


def result(
    update: dict[str, torch.Tensor] = MODEL, *, weight: float = 1.0, **metrics: float
) -> RecordDict:
    told = MetricRecord({WEIGHT: weight, **metrics})
    return RecordDict({ARRAYS: to_record(update), METRICS: told})


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics(CollectorRegistry())


def test_a_fitting_reply_passes_and_is_accounted_for(metrics: ServerMetrics) -> None:
    at = desk(metrics)
    update = {"w": torch.full((2, 3), 2.0), "n": torch.tensor(1)}
    passed = list(at.pass_on([reply("east", result(update, epsilon=0.5))]))
    assert passed[0].has_content()
    assert at.sites["east"].update_norm == pytest.approx(5.0)
    assert at.sites["east"].metrics == {"epsilon": 0.5}
    assert at.sites["north"].outcome == at.sites["west"].outcome == "missing"
    assert at.results == 1
    assert (
        metrics.registry.get_sample_value("hanse_server_site_epsilon_spent", {"site": "east"})
        == 0.5
    )


def npy(array: npt.NDArray[Any]) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


def archive() -> bytes:
    written = io.BytesIO()
    np.savez(written, w=np.zeros((2, 3), np.float32))
    return written.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00\x76\x00" + text.encode().ljust(0x75) + b"\n"


HUGE = (10**14,)
FOREIGN: dict[str, Array] = {
    "bytes that are no array": Array("float32", (2, 3), "numpy.ndarray", b"not an array"),
    "no bytes": Array("float32", (2, 3), "numpy.ndarray", b""),
    "an archive of arrays": Array("float32", (2, 3), "numpy.ndarray", archive()),
    "text": Array("<U3", (2,), "numpy.ndarray", npy(np.array(["a", "bcd"]))),
    "dates": Array("datetime64[s]", (2,), "numpy.ndarray", npy(np.zeros(2, "M8[s]"))),
    "no type of numpy's": Array(
        "q", (), "numpy.ndarray", header("{'descr': '<q9', 'fortran_order': False, 'shape': (), }")
    ),
    "half a header": Array("float32", (2, 3), "numpy.ndarray", header("{((((((")),
    "a shape beyond all memory": Array(
        "float32",
        HUGE,
        "numpy.ndarray",
        header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {HUGE}, }}"),
    ),
    "a bfloat16 of another size": Array("bfloat16", (2**64 - 1,), "hanse.bfloat16", b"00"),
    "a bfloat16 beyond all numbers": Array("bfloat16", (2**64 - 1, 0), "hanse.bfloat16", b""),
    "a float32 beyond all numbers": Array(
        "float32",
        (2**64 - 1, 0),
        "numpy.ndarray",
        header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**64 - 1}, 0), }}"),
    ),
}


def with_array(array: Array) -> RecordDict:
    content = result()
    content.array_records[ARRAYS]["w"] = array
    return content


UNFIT: dict[str, Callable[[], RecordDict]] = {
    "a missing array": lambda: result({"w": MODEL["w"]}),
    "an unknown array": lambda: result(MODEL | {"extra": torch.ones(1)}),
    "another shape": lambda: result(MODEL | {"w": torch.zeros(3, 2)}),
    "another dtype": lambda: result(MODEL | {"w": torch.zeros(2, 3).double()}),
    "NaN": lambda: result(MODEL | {"w": torch.full((2, 3), math.nan)}),
    "infinity": lambda: result(MODEL | {"w": torch.full((2, 3), math.inf)}),
    "a metric that is NaN": lambda: result(loss=math.nan),
    "a weight of zero": lambda: result(weight=0.0),
    "a negative weight": lambda: result(weight=-1.0),
    "no weight": lambda: RecordDict({ARRAYS: to_record(MODEL), METRICS: MetricRecord()}),
    "no arrays": lambda: RecordDict({METRICS: MetricRecord({WEIGHT: 1.0})}),
    **{name: lambda array=array: with_array(array) for name, array in FOREIGN.items()},  # type: ignore[misc]
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_what_does_not_fit_goes_on_as_an_error(metrics: ServerMetrics, unfit: str) -> None:
    at = desk(metrics)
    passed = list(at.pass_on([reply("east", UNFIT[unfit]())]))
    assert passed[0].has_error()
    assert passed[0].error.code == UpdateError.exit_code
    assert passed[0].metadata.src_node_id == node_id_of("east")
    assert at.sites["east"].outcome == "update"
    assert at.sites["east"].reason
    assert at.results == 0


THREES = {"w": torch.full((2, 3), 3.0), "n": torch.tensor(3)}  # of norm sqrt(63)


def test_an_update_beyond_the_largest_norm_is_scaled_down_to_it(metrics: ServerMetrics) -> None:
    at = desk(metrics, {"max_update_norm": math.sqrt(7.0)})
    (passed,) = at.pass_on([reply("east", result(THREES, loss=0.5))])
    update = to_tensors(only_arrays(passed.content))
    assert torch.allclose(update["w"], torch.ones(2, 3))
    assert update["n"] == 1
    assert only_metrics(passed.content) == {WEIGHT: 1.0, "loss": 0.5}
    assert at.sites["east"].outcome == "result"
    assert at.sites["east"].update_norm == pytest.approx(math.sqrt(63.0))
    assert at.sites["east"].clipped
    count = metrics.registry.get_sample_value
    assert count("hanse_server_site_updates_clipped_total", {"site": "east"}) == 1


def test_an_update_beyond_the_largest_norm_is_left_out_where_the_job_says_so(
    metrics: ServerMetrics,
) -> None:
    at = desk(metrics, {"max_update_norm": math.sqrt(7.0), "beyond": "refuse"})
    fitting = {"w": torch.ones(2, 3), "n": torch.tensor(1)}
    refused, passed = at.pass_on([reply("east", result(THREES)), reply("west", result(fitting))])
    assert refused.has_error()
    assert at.sites["east"].outcome == "update"
    assert "7.93725, is above the largest, 2.64575" in at.sites["east"].reason
    assert passed.has_content()
    assert not at.sites["west"].clipped


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: result(weight=1001.0), "num-examples = 1001 is above the largest, 1000"),
        (lambda: result(accuracy=1.5), "accuracy = 1.5 is not within 0 and 1"),
        (lambda: result(accuracy=-0.5), "accuracy = -0.5 is not within 0 and 1"),
    ],
)
def test_numbers_beyond_the_jobs_checks_are_left_out(
    metrics: ServerMetrics, content: Callable[[], RecordDict], told: str
) -> None:
    at = desk(metrics, {"max_weight": 1000.0, "metrics": {"accuracy": [0.0, 1.0]}})
    refused, passed = at.pass_on(
        [reply("east", content()), reply("west", result(weight=1000.0, accuracy=1.0))]
    )
    assert refused.has_error()
    assert told in at.sites["east"].reason
    assert passed.has_content()


def test_a_round_that_has_what_it_needs_closes(metrics: ServerMetrics) -> None:
    at = desk(metrics)
    replies = iter([reply("east", result()), reply("west", result()), reply("north", result())])
    passed = list(at.pass_on(replies, goal=2))
    assert len(passed) == 2
    assert next(replies).has_content()  # nobody has looked at it
    assert at.sites["north"].outcome == "missing"
    assert at.sites["north"].reason == "the round closed at its goal, 2"


def test_a_refusal_keeps_its_name(metrics: ServerMetrics) -> None:
    at = desk(metrics)
    list(at.pass_on([reply("east", Error(PolicyError.exit_code, "policy: too many steps"))]))
    assert at.sites["east"].outcome == "policy"
    assert at.sites["east"].reason == "policy: too many steps"
    assert (
        metrics.registry.get_sample_value(
            "hanse_server_replies_total", {"site": "east", "outcome": "policy"}
        )
        == 1
    )


def test_who_is_awaited_is_told_while_it_is(metrics: ServerMetrics) -> None:
    at = desk(metrics)
    replies = at.pass_on([reply("east", result()), reply("west", result())])
    assert [each.site for each in at.awaited] == ["east", "north", "west"]
    next(replies)
    assert [each.site for each in at.awaited] == ["north", "west"]
    since = metrics.registry.get_sample_value(
        "hanse_server_site_awaited_since_timestamp_seconds", {"site": "north"}
    )
    assert since
    list(replies)
    assert at.awaited == ()


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({f"m{index}": 0.5 for index in range(100)}, "101 metrics are more than 100"),
        ({"a b": 0.5}, "'a b' is no name of a metric"),
        ({"x" * 10_000: 0.5}, "'xxxx"),
        ({"": 0.5}, "'' is no name"),
        ({'a{b="c"}': 0.5}, "is no name of a metric"),
    ],
)
def test_names_of_metrics_are_few_and_plain(metrics: dict[str, float], told: str) -> None:
    at = desk(ServerMetrics(CollectorRegistry()))
    passed = list(at.pass_on([reply("east", result(MODEL, **metrics))]))
    assert passed[0].has_error()
    assert at.sites["east"].outcome == UpdateError.label
    assert told in at.sites["east"].reason
    assert len(at.sites["east"].reason) < 200


def test_a_reason_is_kept_up_to_a_length(metrics: ServerMetrics) -> None:
    at = desk(metrics)
    list(at.pass_on([reply("east", Error(PolicyError.exit_code, "policy: " + "x" * 100_000))]))
    assert len(at.sites["east"].reason) == 500


def with_terms(**terms: Any) -> RecordDict:
    content = result(loss=0.5, auc=0.9)
    content[TERMS] = ConfigRecord(terms)
    return content


def test_the_terms_of_a_reply_are_kept(metrics: ServerMetrics) -> None:
    at = desk(metrics)
    said = with_terms(count="public", noised=["loss"], exact=["auc"], noise_multiplier=50.0)
    list(at.pass_on([reply("east", said), reply("west", result())]))
    assert at.sites["east"].terms == Terms(
        count="public", noised=("loss",), exact=("auc",), noise_multiplier=50.0
    )
    assert at.sites["west"].terms == Terms()


@pytest.mark.parametrize(
    "terms",
    [
        {"noised": ["mae"], "noise_multiplier": 50.0},
        {"noised": ["loss"]},
        {"noised": ["loss"], "noise_multiplier": -1.0},
        {"noised": ["loss"], "noise_multiplier": math.inf},
        {"noise_multiplier": 50.0},
        {"exact": "loss"},
        {"count": "a lot"},
        {"count": 7},
    ],
)
def test_terms_that_make_no_sense_are_refused(terms: dict[str, Any]) -> None:
    at = desk(ServerMetrics(CollectorRegistry()))
    (passed,) = at.pass_on([reply("east", with_terms(**terms))])
    assert passed.has_error()
    assert TERMS in at.sites["east"].reason


def test_names_that_sites_make_up_do_not_grow_the_metrics_without_end(
    metrics: ServerMetrics,
) -> None:
    for number in range(300):
        metrics.show_of_model(f"m{number}", "federated", 1.0)
        metrics.show_of_model("m0", "federated", float(number))
    names = {
        sample.labels["metric"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "hanse_server_model_metric"
    }
    assert len(names) == 100
    shown = {"metric": "m0", "source": "federated"}
    assert metrics.registry.get_sample_value("hanse_server_model_metric", shown) == 299.0

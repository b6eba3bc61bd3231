"""Encoded updates at the desk: made plain one by one, and checked like any other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedMedian
from hanse.aggregation import Checks, Encoding
from hanse.encodings import CODECS, encode
from hanse.flower import (
    ARRAYS,
    METRICS,
    WEIGHT,
    Envelope,
    become_server_app,
    only_arrays,
    open_envelope,
    to_array,
    to_record,
    to_tensors,
)
from hanse.identity import node_id_of
from hanse_server.decoding import Travelling
from hanse_server.metrics import ServerMetrics
from hanse_server.replies import ReplyDesk
from hanse_server.simulation.grid import LocalGrid
from hanse_server.strategies.flower import OnWeights
from hanse_server.strategies.streaming import StreamingFedAvg
from hanse_server.updates import specs_of
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

Name = Literal["plain", "float16", "bfloat16", "int8", "int4", "topk"]
MODEL = {"w": torch.zeros(30, 40), "b": torch.zeros(2), "n": torch.tensor(0)}
UPDATE = {
    "w": torch.randn(30, 40, generator=torch.Generator().manual_seed(1)),
    "b": torch.ones(2),
    "n": torch.tensor(3),
}
PLAIN_BYTES = 4 * (1200 + 2) + 8


class NoEngine:
    def execute(self, messages: Any) -> Any:
        raise AssertionError("nothing is executed here")

    def close(self) -> None:
        pass


def encoded(name: Name, update: dict[str, Tensor] = UPDATE) -> ArrayRecord:
    draws = torch.Generator().manual_seed(1)
    arrays = ArrayRecord()
    for key, tensor in update.items():
        array = encode(tensor, Encoding(name=name), draws)
        arrays[key] = to_array(tensor) if array is None else array
    return arrays


def reply(arrays: ArrayRecord, site: str = "east", **metrics: float) -> Message:
    envelope = Envelope(
        message_id="",
        run_id=1,
        src_node_id=node_id_of(site),
        dst_node_id=1,
        message_type=MessageType.TRAIN,
    )
    told = MetricRecord({WEIGHT: 1.0, **metrics})
    return open_envelope(envelope, RecordDict({ARRAYS: arrays, METRICS: told}))


class Desk:
    """A desk for one round's replies of two sites."""

    def __init__(
        self, name: Name = "plain", *, frozen: tuple[str, ...] = (), **checks: Any
    ) -> None:
        self.metrics = ServerMetrics(CollectorRegistry())
        become_server_app(1)
        content = RecordDict({ARRAYS: to_record(MODEL), "config": ConfigRecord()})
        encoding = Encoding(name=name, trainable_only=bool(frozen))
        self._desk = ReplyDesk(
            [Message(content, node_id_of(s), MessageType.TRAIN) for s in ("east", "west")],
            LocalGrid(1, ("east", "west"), NoEngine()),
            self.metrics,
            specs=specs_of(to_record(MODEL)),
            checks=Checks.model_validate(checks),
            deadline=60.0,
            travelling=Travelling(encoding, frozenset(frozen)),
        )

    def take(self, *replies: Message) -> list[Message]:
        return list(self._desk.pass_on(replies))

    def passing(self, replies: Iterator[Message]) -> Iterator[Message]:
        return self._desk.pass_on(replies)

    def __getitem__(self, site: str) -> Any:
        return self._desk.sites[site]


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_strategy_sees_plain_arrays(name: Name) -> None:
    at, arrays = Desk(name), encoded(name)
    (passed,) = at.take(reply(arrays, encoding_error=0.1))
    update = to_tensors(only_arrays(passed.content))
    assert {key: (t.dtype, t.shape) for key, t in update.items()} == {
        key: (t.dtype, t.shape) for key, t in MODEL.items()
    }
    assert torch.equal(update["n"], UPDATE["n"])
    whole = float(UPDATE["w"].norm())
    assert float((update["w"] - UPDATE["w"]).norm()) < (0.5 if name == "topk" else 0.25) * whole
    site = at["east"]
    norm = torch.cat([update[key].double().reshape(-1) for key in update]).norm()
    assert site.update_norm == pytest.approx(float(norm))
    size = sum(len(array.data) for array in arrays.values())
    assert (site.encoding, site.bytes, site.plain_bytes) == (name, size, PLAIN_BYTES)
    value = at.metrics.registry.get_sample_value
    told = {
        form: value("hanse_server_update_bytes_total", {"site": "east", "form": form})
        for form in ("encoded", "plain")
    }
    assert told == {"encoded": size, "plain": PLAIN_BYTES}
    assert value("hanse_server_site_encoding_error", {"site": "east"}) == 0.1


def test_a_site_that_answers_plain_counts_as_well() -> None:
    at = Desk("int8")
    passed = at.take(reply(to_record(UPDATE)), reply(encoded("int8"), "west"))
    assert [each.has_content() for each in passed] == [True, True]
    assert (at["east"].encoding, at["west"].encoding) == ("plain", "int8")
    assert torch.equal(to_tensors(only_arrays(passed[0].content))["w"], UPDATE["w"])


def test_one_reply_at_a_time_is_made_plain() -> None:
    """While one is folded, the next has not been touched."""
    waiting = [reply(encoded("int8"), site) for site in ("east", "west")]
    passing = Desk("int8").passing(iter(waiting))
    next(passing)
    stypes = [only_arrays(each.content)["w"].stype for each in waiting]
    assert stypes == ["numpy.ndarray", "hanse.encoding.int8"]


def forged(data: bytes, stype: str = "hanse.encoding.int8", **how: Any) -> ArrayRecord:
    said = {"dtype": "float32", "shape": (30, 40)} | how
    array = Array(said["dtype"], said["shape"], stype, data)
    return ArrayRecord({**encoded("int8"), "w": array})


GOOD = encoded("int8")["w"].data
NAN, INF = b"\0\0\xc0\x7f", b"\0\0\x80\x7f"


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        (encoded("int4"), "array w is encoded as int4, and the job asks for int8"),
        (forged(GOOD[:-1]), "array w cannot be read: 1200 numbers"),
        (forged(GOOD + b"\0"), "array w cannot be read: 1200 numbers"),
        (forged(NAN + GOOD[4:]), "array w cannot be read: a block's scale"),
        (forged(INF + GOOD[4:]), "array w cannot be read: a block's scale"),
        (forged(b"\xff\xff\x7f\x7f" + GOOD[4:]), "array w holds NaN or infinite numbers"),
        (forged(GOOD[:-1] + b"\x80"), "array w cannot be read: a number is not one of"),
        (forged(GOOD, shape=(1200,)), "array w cannot be read: declared float32(1200,)"),
        (forged(GOOD, shape=(2**40,)), "array w cannot be read: declared"),
        (forged(GOOD, dtype="float64"), "array w cannot be read: declared float64"),
        (forged(GOOD, stype="hanse.encoding.int3"), "array w cannot be read"),
        (forged(GOOD, stype="numpy.ndarray"), "array w cannot be read"),
        (ArrayRecord({**encoded("int8"), "more": encoded("int8")["w"]}), "array more is"),
        (ArrayRecord({"w": encoded("int8")["w"]}), "array b is missing"),
        (
            ArrayRecord(
                {**encoded("int8"), "n": Array("int64", (), "hanse.encoding.int8", bytes(5))}
            ),
            "array n cannot be read",
        ),
    ],
)
def test_what_is_no_encoded_update_is_refused_by_name(arrays: ArrayRecord, told: str) -> None:
    at = Desk("int8")
    (passed,) = at.take(reply(arrays))
    assert passed.has_error()
    assert at["east"].outcome == "update"
    assert told in at["east"].reason


def test_an_encoding_that_nobody_asked_for_is_refused() -> None:
    at = Desk()
    at.take(reply(encoded("int8")))
    assert "the job asks for plain" in at["east"].reason


@pytest.mark.parametrize("beyond", ["clip", "refuse"])
def test_the_norm_is_that_of_what_counts(beyond: str) -> None:
    at = Desk("int8", max_update_norm=2.0, beyond=beyond)
    (passed,) = at.take(reply(encoded("int8")))
    if beyond == "refuse":
        assert at["east"].outcome == "update"
        return
    update = to_tensors(only_arrays(passed.content))
    norm = torch.cat([t.double().reshape(-1) for t in update.values()]).norm()
    assert float(norm) <= 2.0 + 1e-6
    assert at["east"].clipped


# --- what is frozen -------------------------------------------------------------------------


def without(*names: str) -> ArrayRecord:
    return ArrayRecord({n: a for n, a in to_record(UPDATE).items() if n not in names})


def test_what_is_frozen_may_be_left_out_and_nothing_else() -> None:
    at = Desk(frozen=("w",))
    passed = at.take(reply(without("w")), reply(without("w", "b"), "west"))
    assert passed[0].has_content()
    assert at["east"].plain_bytes == PLAIN_BYTES
    assert at["west"].outcome == "update"
    assert "array b is missing" in at["west"].reason
    assert Desk().take(reply(without("w")))[0].has_error()


def test_who_sends_what_is_frozen_is_heard_too() -> None:
    assert Desk(frozen=("w",)).take(reply(to_record(UPDATE)))[0].has_content()


def _trained(strategy: Any) -> dict[str, Tensor]:
    grid = LocalGrid(1, ("east", "west"), NoEngine())
    model = to_record(MODEL | {"w": torch.full((30, 40), 5.0)})
    list(strategy.configure_train(1, model, ConfigRecord(), grid))
    replies = Desk(frozen=("w",)).take(reply(without("w")), reply(without("w"), "west"))
    arrays, _ = strategy.aggregate_train(1, replies)
    return to_tensors(arrays)


def test_every_strategy_leaves_what_was_left_out_as_it_is() -> None:
    inner = FedMedian(min_train_nodes=2, min_evaluate_nodes=1, min_available_nodes=1)
    for strategy in (StreamingFedAvg(momentum=0.5), OnWeights(inner, seed=1)):
        model = _trained(strategy)
        assert torch.equal(model["w"], torch.full((30, 40), 5.0))
        assert torch.equal(model["b"], torch.ones(2))


def test_what_is_frozen_is_read_from_the_tasks_model() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        model[0].requires_grad_(False)
        return model

    before = torch.random.get_rng_state()
    assert Travelling.of(Encoding(), make).frozen == frozenset()
    found = Travelling.of(Encoding(trainable_only=True), make).frozen
    assert found == {"0.weight", "0.bias"}, "buffers travel: training changes them"
    assert torch.equal(torch.random.get_rng_state(), before)

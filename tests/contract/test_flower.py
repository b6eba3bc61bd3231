"""Each touch of Flower that ``hanse.flower`` makes, held against the Flower that is installed."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any
from unittest.mock import create_autospec

import numpy as np
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
from flwr.app import Error as FlowerError
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from flwr.supercore.logger import FLOWER_LOGGER
from flwr.supercore.task_identity import TaskIdentity
from hanse import flower
from hanse.errors import BudgetError, DataError, HanseError, error_types
from hanse.flower import (
    Envelope,
    become_server_app,
    error_label,
    error_reply,
    filled,
    only_arrays,
    open_envelope,
    to_array,
    to_record,
    to_tensor,
    to_tensors,
)

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
]
SHAPES = [(), (0,), (3,), (2, 0, 3), (2, 3, 4)]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start as no one, as a process does, and leave no identity to the next test."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)


def instruction() -> Message:
    envelope = Envelope(
        message_id="0" * 31 + "1",
        run_id=7,
        src_node_id=flower.SERVER_NODE_ID,
        dst_node_id=42,
        message_type=MessageType.TRAIN,
        group_id="3",
        created_at=1.7e9,
        ttl=60.0,
    )
    return open_envelope(envelope, RecordDict({"config": ConfigRecord({"a": 1})}))


# --- TaskIdentity -------------------------------------------------------------------------


def test_flower_makes_no_message_before_the_process_has_an_identity() -> None:
    with pytest.raises(RuntimeError, match="run_id is not set"):
        Message(RecordDict(), dst_node_id=42, message_type=MessageType.TRAIN)


def test_a_server_app_sends_under_the_run_and_flowers_own_number() -> None:
    become_server_app(7)

    metadata = Message(RecordDict(), dst_node_id=42, message_type=MessageType.TRAIN).metadata

    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (7, 1, 42)
    assert flower.SERVER_NODE_ID == SUPERLINK_NODE_ID


# --- Message(metadata=...) ----------------------------------------------------------------


def test_an_envelope_opens_to_the_message_that_was_sent() -> None:
    become_server_app(7)
    sent = Message(
        RecordDict({"config": ConfigRecord({"a": 1})}),
        dst_node_id=42,
        message_type="query.summary",
        ttl=60.0,
        group_id="3",
    )

    arrived = open_envelope(Envelope.of(sent, "f" * 32), sent.content)

    assert arrived.content == sent.content
    assert arrived.metadata.message_id == "f" * 32
    for name in ("run_id", "src_node_id", "dst_node_id", "message_type", "group_id"):
        assert getattr(arrived.metadata, name) == getattr(sent.metadata, name), name
    assert arrived.metadata.created_at == sent.metadata.created_at
    assert arrived.metadata.ttl == 60.0
    assert arrived.metadata.reply_to_message_id == ""


def test_flowers_reply_to_an_opened_message_goes_back_to_its_sender() -> None:
    asked = instruction()

    reply = Envelope.of(Message(RecordDict(), reply_to=asked), "e" * 32)

    assert reply.reply_to == asked.metadata.message_id
    assert (reply.src_node_id, reply.dst_node_id) == (42, flower.SERVER_NODE_ID)
    assert (reply.run_id, reply.group_id, reply.message_type) == (7, "3", MessageType.TRAIN)


def test_an_error_is_opened_as_an_error() -> None:
    envelope = Envelope.of(error_reply(BudgetError("too much"), instruction()), "e" * 32)

    reply = open_envelope(envelope, FlowerError(41, "budget: too much"))

    assert reply.has_error()
    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (41, "budget: too much")


# --- error codes --------------------------------------------------------------------------


def test_no_code_of_hanse_is_one_of_flowers() -> None:
    flowers = {value for name, value in vars(ErrorCode).items() if name.isupper()}

    assert flowers.isdisjoint(kind.exit_code for kind in error_types() if kind is not HanseError)


def test_the_codes_taken_from_flower_mean_what_they_say() -> None:
    assert flower.APP_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert flower.APP_CRASHED == ErrorCode.CLIENT_APP_CRASHED
    assert {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
    } == flower.LOST_ON_THE_WAY


def test_a_sender_makes_the_messages_that_flower_makes_in_its_process() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 3, 5, 1
    content = RecordDict({"config": ConfigRecord({"a": 1})})
    flowers = Message(content, 42, "train", ttl=60.0, group_id="2")
    sender = flower.Sender.here()
    become_server_app(7)  # as a round loop does: the sender stays who it was

    ours = sender.message(content, 42, message_type="train", group_id="2", ttl=60.0)

    told = {**vars(ours.metadata), **vars(flowers.metadata)}
    assert told.keys() == vars(ours.metadata).keys()
    different = {name for name in told if vars(ours.metadata)[name] != vars(flowers.metadata)[name]}
    assert different <= {"_created_at", "created_at"}
    assert ours.content == content


@pytest.mark.parametrize(
    "kind",
    [kind for kind in error_types() if kind is not HanseError],
    ids=lambda kind: kind.label,
)
def test_an_error_reply_tells_its_kind(kind: type[HanseError]) -> None:
    reply = error_reply(kind("age = 93"), instruction())

    assert reply.metadata.reply_to_message_id == instruction().metadata.message_id
    assert error_label(reply.error) == kind.label


def test_a_foreign_apps_error_has_a_label_too() -> None:
    assert error_label(FlowerError(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)) == "client_app"


def test_an_unexpected_exception_is_answered_without_its_text() -> None:
    def call(_: Message) -> Message:
        raise KeyError("age = 93")

    reply = flower.answer(call, instruction())

    assert (reply.error.code, reply.error.reason) == (flower.APP_RAISED, "KeyError")


def test_an_error_about_data_is_answered_by_its_label_alone() -> None:
    def call(_: Message) -> Message:
        raise DataError("age = 93")

    assert flower.answer(call, instruction()).error.reason == "data"


# --- arrays -------------------------------------------------------------------------------


def sample(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    return (values - 3 if dtype.is_signed else values).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tensor_comes_back_as_it_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = sample(dtype, shape)

    back = to_tensor(to_array(tensor))

    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.bfloat16], ids=str)
def test_flower_reads_the_arrays_of_hanse(dtype: torch.dtype) -> None:
    tensor = sample(dtype, (2, 3))
    array = to_array(tensor)

    assert array.stype == SType.NUMPY
    assert np.array_equal(array.numpy(), tensor.numpy())
    assert torch.equal(to_record({"w": tensor}).to_torch_state_dict()["w"], tensor)


def test_hanse_reads_the_arrays_of_flower() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.GroupNorm(1, 2))

    read = to_tensors(ArrayRecord(model.state_dict()))

    assert list(read) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(read[name], tensor)


def test_a_tensor_that_was_read_can_be_written_to() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        array = to_array(torch.zeros(3, dtype=dtype))
        to_tensor(array).add_(1)
        assert torch.equal(to_tensor(array), torch.zeros(3, dtype=dtype))


def test_a_view_and_a_parameter_are_taken_by_their_values() -> None:
    square = torch.arange(6.0).reshape(2, 3)

    assert torch.equal(to_tensor(to_array(square.T)), square.T)
    assert torch.equal(to_tensor(to_array(torch.nn.Parameter(square))), square)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (4,)), ("float64", (3,)), ("float32", (3, 1))]
)
def test_an_array_that_is_not_what_it_declares_is_refused(
    dtype: str, shape: tuple[int, ...]
) -> None:
    data = bytes(to_array(torch.zeros(3)).data)

    with pytest.raises(ValueError, match="declared"):
        to_tensor(Array(dtype, shape, SType.NUMPY, data))


def test_an_array_of_pickled_objects_is_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"any": "object"}], dtype=object), allow_pickle=True)

    with pytest.raises(ValueError, match="holds no array"):
        to_tensor(Array("object", (1,), SType.NUMPY, buffer.getvalue()))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (MetricRecord, {"loss": 0.5, "steps": 3}),
        (ConfigRecord, {"name": "north", "kept": 0.1, "names": ["a"]}),
        (ArrayRecord, {"weight": Array(np.ones(2))}),
        (RecordDict, {"metrics": MetricRecord({"loss": 0.5})}),
    ],
)
def test_a_filled_record_is_the_one_that_flower_makes(kind: Any, values: dict[str, Any]) -> None:
    record, made = filled(kind, dict(values)), kind(dict(values))
    assert record == made
    assert getattr(record, "object_id", None) == getattr(made, "object_id", None)
    assert list(record.items()) == list(made.items())
    with pytest.raises(TypeError):
        record["another"] = object()
    if kind in (MetricRecord, ConfigRecord):
        assert kind.inflate(record.deflate()) == made


def test_a_message_has_one_array_record() -> None:
    record = to_record({"w": torch.zeros(1)})

    assert only_arrays(RecordDict({"any-name": record})) == record
    for content in (RecordDict(), RecordDict({"a": record, "b": record})):
        with pytest.raises(ValueError, match="expected one ArrayRecord"):
            only_arrays(content)


# --- names that are Flower's --------------------------------------------------------------


@pytest.fixture
def grid() -> Iterator[Grid]:
    become_server_app(7)
    grid = create_autospec(Grid, instance=True)
    grid.get_node_ids.return_value = [42, 43]
    return grid  # type: ignore[no-any-return]


def test_flowers_strategies_use_the_keys_that_hanse_reads(grid: Grid) -> None:
    arrays = to_record({"w": torch.zeros(1)})

    messages = list(FedProx(proximal_mu=0.25).configure_train(5, arrays, ConfigRecord(), grid))

    assert len(messages) == 2
    for message in messages:
        config = message.content[flower.CONFIG]
        assert isinstance(config, ConfigRecord)
        assert config[flower.ROUND] == 5
        assert config[flower.PROXIMAL_MU] == 0.25
        assert isinstance(message.content[flower.ARRAYS], ArrayRecord)


def reply_of(node: int, value: float, metrics: MetricRecord) -> Message:
    become_server_app(7)
    asked = Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
    content = RecordDict(
        {
            flower.ARRAYS: to_record({"w": torch.full((1,), value)}),
            flower.METRICS: metrics,
        }
    )
    return Message(content, reply_to=asked)


def test_flowers_strategies_weight_by_the_key_that_hanse_sends() -> None:
    replies = [
        reply_of(42, 1.0, MetricRecord({flower.WEIGHT: 3.0})),
        reply_of(43, 5.0, MetricRecord({flower.WEIGHT: 1.0})),
    ]

    arrays, _ = FedAvg().aggregate_train(1, replies)

    assert arrays is not None
    assert to_tensors(arrays)["w"].item() == pytest.approx(2.0)


def test_what_flowers_strategies_raise_is_caught_under_one_name() -> None:
    replies = [
        reply_of(42, 1.0, MetricRecord({flower.WEIGHT: 3.0})),
        reply_of(43, 5.0, MetricRecord({"another-key": 1.0})),
    ]

    with pytest.raises(flower.AppExitException):
        FedAvg().aggregate_train(1, replies)


def test_flower_logs_where_it_is_quietened() -> None:
    logger = logging.getLogger("flwr")
    before = logger.level
    try:
        flower.quiet_flower()
        assert FLOWER_LOGGER is logger
        assert not FLOWER_LOGGER.isEnabledFor(logging.INFO)
        assert FLOWER_LOGGER.isEnabledFor(logging.WARNING)
    finally:
        logger.setLevel(before)

"""Attacks by a hostile server: what it asks, and the name under which the site refuses it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ConfigRecord, RecordDict
from hanse.encodings import ENCODING, KEPT
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    PROXIMAL_MU,
    ROUND,
    SERVER_NODE_ID,
    Envelope,
    to_record,
)
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import encode, make_header
from hanse_client.link.desk import MOST_HELD
from hanse_client.link.stream import MOST_ASKS
from hanse_client.site import AllowedTask, SecureAggregationPolicy

from tests.attacks.besieged import NAME, Tyrant, content, edited, welcome
from tests.attacks.hostile_sites import ESCAPE, npy
from tests.harbour import TASK, job
from tests.loopback import RUN_ID

Ask = Callable[[], RecordDict]


def _nothing_before(tyrant: Tyrant) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Instructed:
    """What a server tells a site to do.

    Attributes:
        told: what the site's administrator reads of it in the audit trail.
        policy: of the site, where it differs from that of tests/harbour.py.
        before: what the server has asked before, and the site has done.
        false: what is odd in the instruction's envelope.
    """

    does: str
    label: str
    told: str
    ask: Ask
    policy: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[Tyrant], None] = _nothing_before
    false: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What a server writes on the stream: the site ends it, and tells its administrator why."""

    does: str
    label: str
    told: str
    script: Callable[[Any], Awaitable[None]]


# --- instructions -------------------------------------------------------------------------------


def _job(number: int = 1, **changes: Any) -> Ask:
    return lambda: content(job(**changes), number)


def _text(**keys: Any) -> Ask:
    return lambda: _with_text(edited(job(), **keys))


def _with_text(text: str) -> RecordDict:
    asked = content(job())
    asked[CONFIG] = ConfigRecord({JOB: text, ROUND: 1})
    return asked


def _weights(**tensors: torch.Tensor) -> Ask:
    def ask() -> RecordDict:
        asked = content(job())
        asked[ARRAYS] = to_record({"weight": torch.ones(1, 1), "bias": torch.zeros(1), **tensors})
        return asked

    return ask


def _pickled() -> RecordDict:
    asked = content(job())
    data = npy(np.array([[print]], dtype=object), allow_pickle=True)
    asked.array_records[ARRAYS]["weight"] = Array("object", (1, 1), "numpy.ndarray", data)
    return asked


def _tabular(hidden: list[int]) -> Ask:
    options = {
        "columns": {"age": {"type": "number", "low": 0, "high": 1}},
        "target": {"column": "ill", "classes": ["no", "yes"]},
        "model": {"kind": "mlp", "hidden": hidden},
    }
    return lambda: content(job(task={"name": "tabular", "options": options}))


def _trained(tyrant: Tyrant) -> None:
    assert tyrant.send(content(_cheap()), id="b" * 32).has_content()
    tyrant.settle()


def _trained_round_5(tyrant: Tyrant) -> None:
    assert tyrant.send(content(_cheap(), 5), id="b" * 32).has_content()


def _cheap() -> Job:
    return job(privacy={"noise_multiplier": 60.0})


def _of_a_secure_round() -> RecordDict:
    asked = content(job(secure_aggregation={"enabled": True}))
    asked.config_records[CONFIG]["hanse.session"] = "0" * 32
    return asked


def _asks_for(encoding: str, kept: float, **changes: Any) -> Ask:
    def ask() -> RecordDict:
        asked = content(job(**changes))
        asked.config_records[CONFIG].update({ENCODING: encoding, KEPT: kept})
        return asked

    return ask


def _encoded_weights() -> RecordDict:
    asked = content(job())
    few = Array("float32", (1 << 20, 1 << 20), "hanse.encoding.topk", bytes(8))
    asked.array_records[ARRAYS]["weight"] = few
    return asked


def _with_a_pull_of_nan() -> RecordDict:
    asked = content(job())
    asked.config_records[CONFIG][PROXIMAL_MU] = math.nan
    return asked


TABULAR = {"tasks": (AllowedTask(name="tabular"),)}

INSTRUCTED = (
    Instructed(
        does="asks for more steps than the site makes",
        label="policy",
        told="steps = 9 is above",
        ask=_job(training={"steps": 9, "batch_size": 20}),
        policy={"max_steps": 8},
    ),
    Instructed(
        does="asks for less noise",
        label="policy",
        told="noise_multiplier = 2 is below",
        ask=_job(),
        policy={"min_noise_multiplier": 3.0},
    ),
    Instructed(
        does="asks for a larger clipping norm",
        label="policy",
        told="clipping_norm = 1 is above",
        ask=_job(),
        policy={"max_clipping_norm": 0.5},
    ),
    Instructed(
        does="asks for training without privacy",
        label="privacy_required",
        told="allow_training_without_privacy",
        ask=_job(privacy={"mechanism": "none"}),
    ),
    Instructed(
        does="asks for a task that the site does not run",
        label="policy",
        told="is not among this site's",
        ask=_job(),
        policy=TABULAR,
    ),
    Instructed(
        does="names a function of Python's as the task",
        label="policy",
        told="'os:system' is not among",
        ask=_text(task__name="os:system"),
    ),
    Instructed(
        does="asks for a pinned task in another version",
        label="policy",
        told="is not the version that policy.tasks pins",
        ask=_job(),
        policy={"tasks": (AllowedTask(name=TASK, digest="0" * 64),)},
    ),
    Instructed(
        does="asks for more rounds than the site takes part in",
        label="policy",
        told="rounds = 30 is above",
        ask=_job(rounds=30),
        policy={"max_rounds": 20},
    ),
    Instructed(
        does="asks for a round that the job does not have",
        label="policy",
        told="round 6 is not one of",
        ask=_job(6),
    ),
    Instructed(
        does="asks for more than the privacy budget",
        label="budget",
        told="above the data's budget",
        ask=_job(privacy={"noise_multiplier": 0.6}),
    ),
    Instructed(
        does="leaves the sampling rate to the site, to find out how many records it has",
        label="policy",
        told="keeps its number of records to itself",
        ask=_job(privacy={"noise_multiplier": 2.0, "sampling_rate": None}),
    ),
    Instructed(
        does="switches off the secure aggregation that the site requires",
        label="policy",
        told="secure_aggregation.enabled = false",
        ask=_job(),
        policy={"secure_aggregation": SecureAggregationPolicy(required=True)},
    ),
    Instructed(
        does="asks for a secure round's update without the stages before it",
        label="secure_aggregation",
        told="",
        ask=_of_a_secure_round,
    ),
    Instructed(
        does="asks for a masked update in an encoding that needs the update",
        label="job",
        told="leaves whole",
        ask=_asks_for("topk", 0.1, secure_aggregation={"enabled": True}),
    ),
    Instructed(
        does="asks for more of an update's numbers than there are",
        label="job",
        told="kept = 7.0",
        ask=_asks_for("topk", 7.0),
    ),
    Instructed(
        does="sends a model of terabytes, encoded in a few bytes",
        label="task",
        told="cannot be read",
        ask=_encoded_weights,
    ),
    Instructed(
        does="asks for a FedProx pull that is no number",
        label="policy",
        told="not a finite number",
        ask=_with_a_pull_of_nan,
    ),
    Instructed(
        does="replays an instruction that was settled",
        label="policy",
        told="was answered and settled",
        ask=lambda: content(_cheap()),
        before=_trained,
        false={"id": "b" * 32},
    ),
    Instructed(
        does="goes back to an earlier round",
        label="policy",
        told="round 3 came after round 5",
        ask=lambda: content(_cheap(), 3),
        before=_trained_round_5,
    ),
    Instructed(
        does="sends an instruction whose time is over",
        label="policy",
        told="time was over",
        ask=_job(),
        false={"created_at": 1e9, "ttl": 60.0},
    ),
    Instructed(
        does="sends the instruction of another site",
        label="policy",
        told="the instruction is for node",
        ask=_job(),
        false={"dst_node_id": node_id_of("another")},
    ),
    Instructed(
        does="calls an instruction to train by another name",
        label="policy",
        told="message_type = 'train.default'",
        ask=_job(),
        false={"kind": "train.default"},
    ),
    Instructed(
        does="sends a model beyond the policy's size",
        label="wire",
        told="passes the limit, 10000",
        ask=_weights(weight=torch.ones(100, 100)),
        policy={"max_model_mb": 0.01},
    ),
    Instructed(
        does="asks for a model beyond the policy's size by the task's options",
        label="policy",
        told="model size in MB = 17",
        ask=_tabular([65_536, 65_536]),
        policy=TABULAR,
    ),
    Instructed(
        does="asks for a model of a hundred thousand layers",
        label="task",
        told="at most 64 items",
        ask=_tabular([1] * 100_000),
        policy=TABULAR,
    ),
    Instructed(
        does="sends weights that are NaN",
        label="task",
        told="'weight' holds NaN or infinite numbers",
        ask=_weights(weight=torch.full((1, 1), math.nan)),
    ),
    Instructed(
        does="sends weights that are infinite",
        label="task",
        told="'bias' holds NaN or infinite numbers",
        ask=_weights(bias=torch.full((1,), math.inf)),
    ),
    Instructed(
        does="sends weights of another shape",
        label="task",
        told="'weight' is torch.float32(3, 1)",
        ask=_weights(weight=torch.ones(3, 1)),
    ),
    Instructed(
        does="sends weights of another dtype",
        label="task",
        told="'weight' is torch.int64(1, 1)",
        ask=_weights(weight=torch.ones(1, 1, dtype=torch.int64)),
    ),
    Instructed(
        does="sends an array that the model does not have",
        label="task",
        told="'more' is missing or unknown",
        ask=_weights(more=torch.ones(1)),
    ),
    Instructed(
        does="sends an array of pickled objects",
        label="task",
        told="'weight' cannot be read",
        ask=_pickled,
    ),
    Instructed(
        does="sends no model",
        label="job",
        told="holds no model",
        ask=lambda: RecordDict({CONFIG: content(job())[CONFIG]}),
    ),
    Instructed(
        does="sends a job of a hundred thousand nested lists",
        label="job",
        told="is not JSON",
        ask=lambda: _with_text("[" * 100_000),
    ),
    Instructed(
        does="sends a job of two megabytes",
        label="job",
        told="passes the limit, 1000000",
        ask=_text(name="x" * 2_000_000),
    ),
    Instructed(
        does="asks for a number of steps with thousands of digits",
        label="job",
        told="training.steps",
        ask=_text(training__steps=10**4000),
    ),
    Instructed(
        does="asks for a sampling rate that no float can divide by",
        label="job",
        told="privacy.sampling_rate",
        ask=_text(privacy__sampling_rate=5e-324),
    ),
    Instructed(does="asks for a negative seed", label="job", told="seed = -1", ask=_text(seed=-1)),
    Instructed(
        does="hides escape codes in the job's name",
        label="job",
        told="\\x1b[2J",
        ask=_text(name=ESCAPE),
    ),
    Instructed(
        does="asks for metrics in a key of its own",
        label="job",
        told="release: unknown key",
        ask=_text(release=["*"]),
    ),
    Instructed(
        does="names a file of the site's as the first weights",
        label="job",
        told="initial_weights is the server's own",
        ask=_text(initial_weights="/etc/passwd"),
    ),
)


# --- on the stream ------------------------------------------------------------------------------


def _frames(*frames: pb.ServerFrame) -> Callable[[Any], Awaitable[None]]:
    async def script(stream: Any) -> None:
        for frame in frames:
            await stream.write(frame)

    return script


def _header(name: str, asked: RecordDict) -> pb.ServerFrame:
    envelope = Envelope(
        message_id=name,
        run_id=RUN_ID,
        src_node_id=SERVER_NODE_ID,
        dst_node_id=node_id_of(NAME),
        message_type="train",
    )
    return pb.ServerFrame(header=make_header(encode(asked), envelope))


def _chunk(name: str, data: bytes, offset: int = 0) -> pb.ServerFrame:
    return pb.ServerFrame(chunk=pb.Chunk(message_id=name, offset=offset, data=data))


async def _floods(stream: Any) -> None:
    await stream.write(welcome())
    for number in range(MOST_HELD + 100):
        await stream.write(_header(f"{number:032x}", RecordDict()))


async def _asks_without_end(stream: Any) -> None:
    await stream.write(welcome())
    await stream.write(_header("a" * 32, RecordDict()))
    while (await stream.read()).WhichOneof("kind") != "header":
        pass
    for _ in range(2 * MOST_ASKS):
        await stream.write(pb.ServerFrame(ask=pb.Ask(message_id="a" * 32)))


STREAMED = (
    Streamed(
        does="asks for signs of life without a pause",
        label="wire",
        told="heartbeat_seconds = 1e-09 is not between",
        script=_frames(welcome(heartbeat_seconds=1e-9)),
    ),
    Streamed(
        does="asks for signs of life at no time that there is",
        label="wire",
        told="heartbeat_seconds = nan is not between",
        script=_frames(welcome(heartbeat_seconds=math.nan)),
    ),
    Streamed(
        does="sends an envelope that is none",
        label="wire",
        told="an envelope is malformed",
        script=_frames(welcome(), pb.ServerFrame(header=pb.Header(envelope=b"\xff\xff"))),
    ),
    Streamed(
        does="sends more of a model than it has declared",
        label="wire",
        told="does not go on",
        script=_frames(welcome(), _header("a" * 32, content(job())), _chunk("a" * 32, b"x" * 9999)),
    ),
    Streamed(
        does="sends a model with a gap",
        label="wire",
        told="does not go on",
        script=_frames(welcome(), _header("a" * 32, content(job())), _chunk("a" * 32, b"x", 7)),
    ),
    Streamed(
        does="sends instructions without end, and settles none",
        label="wire",
        told="",
        script=_floods,
    ),
    Streamed(
        does="asks for one reply over and over",
        label="wire",
        told=f"more than {MOST_ASKS} times",
        script=_asks_without_end,
    ),
)

ATTACKS = (*INSTRUCTED, *STREAMED)

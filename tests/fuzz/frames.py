"""Messages of the link, as frames, and how the fuzzer changes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.app import Error as FlowerError
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Frame
from hanse.aggregation import Checks
from hanse.digests import BodyHash
from hanse.flower import (
    ARRAYS,
    METRICS,
    TERMS,
    WEIGHT,
    Envelope,
    to_record,
)
from hanse.identity import node_id_of
from hanse.wire import hanse_pb2 as pb
from hanse.wire.content import descriptors
from hanse.wire.frames import deserializer
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, content_digest, encode, make_header, message_digest
from hanse_server.updates import specs_of

from tests.fuzz.mutation import change_bytes, change_message, pack, unpack

MODEL = {
    "w": torch.linspace(-1, 1, 6).reshape(2, 3),
    "n": torch.tensor(3),
    "half": torch.zeros(4, dtype=torch.bfloat16),
}
SPECS = specs_of(to_record(MODEL))
RUN_ID = 7
SITE = "east"
LIMITS = Limits(max_body_bytes=1 << 20, max_header_bytes=1 << 18)
ASKED = Envelope(
    message_id="a" * 32,
    run_id=RUN_ID,
    src_node_id=1,
    dst_node_id=node_id_of(SITE),
    message_type=MessageType.TRAIN,
    group_id="1",
    created_at=1.5,
    ttl=60.0,
)
TO_HARBOUR = replace(ASKED, dst_node_id=node_id_of("harbour"), ttl=0.0)
ANSWER = replace(
    ASKED,
    message_id="b" * 32,
    src_node_id=ASKED.dst_node_id,
    dst_node_id=1,
    reply_to=ASKED.message_id,
)
REPAIR, MASKED = 1, 2
MOST_FRAMES = 12
CHECKS = Checks(max_update_norm=10.0, beyond="clip", metrics={"loss": (0.0, 9.0)})


def contents() -> list[RecordDict | FlowerError]:
    told = MetricRecord({WEIGHT: 2.0, "epsilon": 0.5, "loss": 1.25, "rounds": [1, 2, 3]})
    terms = ConfigRecord(
        {"noised": ["loss"], "exact": [], "noise_multiplier": 2.0, "count": "public"}
    )
    masked = {name: torch.zeros(spec.shape).int() for name, spec in SPECS.items()}
    odd = ConfigRecord({"d": b"x", "f": True, "fs": [True, False], "ds": [b"y"], "t": "z"})
    return [
        RecordDict({ARRAYS: to_record(MODEL), METRICS: told, TERMS: terms}),
        RecordDict({ARRAYS: _unsigned(masked), METRICS: MetricRecord({WEIGHT: 1})}),
        RecordDict({METRICS: told, "odd": odd}),
        RecordDict({ARRAYS: ArrayRecord({"e": Array("uint8", (0,), "raw", b"")})}),
        FlowerError(40, "policy: no"),
        FlowerError(2),
    ]


def _unsigned(tensors: dict[str, torch.Tensor]) -> ArrayRecord:
    return to_record({name: each.view(torch.uint32) for name, each in tensors.items()})


def changed(kind: Frame, data: bytes, randomness: Random) -> bytes:
    """A change to a serialised message; of its bytes, where they hold none."""
    try:
        kind.ParseFromString(data)
    except DecodeError:
        return change_bytes(data, randomness)
    if randomness.random() < 0.1:
        return change_bytes(data, randomness)
    for _ in range(randomness.choice((1, 1, 2, 4))):
        change_message(kind, randomness)
    return kind.SerializeToString()


def stream_of(
    content: RecordDict | FlowerError, envelope: Envelope, kind: Any, *, inline: bool = False
) -> list[bytes]:
    """The frames of a message, its body in two chunks, or in the header."""
    encoded = encode(content)
    name = envelope.reply_to or envelope.message_id
    header = make_header(encoded, envelope, inline=1 << 20)
    if inline:
        header.body = b"".join(encoded.body)
        return [kind(header=header).SerializeToString()]
    frames = [kind(header=header)]
    for offset, data in chunks(encoded):
        half = len(data) // 2
        for start, piece in ((0, data[:half]), (half, data[half:])):
            chunk = pb.Chunk(message_id=name, offset=offset + start, data=piece)
            frames.append(kind(chunk=chunk))
    return [frame.SerializeToString() for frame in frames]


def parsed(data: bytes, kind: Any) -> tuple[int, list[Any]]:
    """Flags and frames of an input; what gRPC could not parse ends the stream there."""
    flags, *packed = unpack(data, MOST_FRAMES) or [b""]
    frames: list[Any] = []
    number = flags[0] if flags else 0
    read = deserializer(kind)
    repairs = bool(number & REPAIR)
    with suppress(DecodeError):
        frames.extend(map(kind.FromString if repairs else read, packed))
    if repairs:
        _repair(frames)
        frames = [read(frame.SerializeToString()) for frame in frames]
    return number, frames


def _repair(frames: Sequence[Any]) -> None:
    """Make headers fit what follows them, so that a change goes deeper than the digest."""
    chunked = b"".join(frame.chunk.data for frame in frames if frame.WhichOneof("kind") == "chunk")
    offset = 0
    for frame in frames:
        if frame.WhichOneof("kind") == "chunk":
            frame.chunk.offset = offset
            offset += len(frame.chunk.data)
        elif frame.WhichOneof("kind") == "header":
            header = frame.header
            body = header.body or chunked
            header.body_size = len(body)
            try:
                content = pb.Content.FromString(header.content)
            except DecodeError:
                continue
            listed = list(descriptors(content))
            if listed:
                rest = len(body) - sum(array.size for array in listed[:-1])
                listed[-1].size = max(0, rest)
                header.content = content.SerializeToString()
            arrays = BodyHash(array.size for array in listed)
            arrays.update(body)
            whole = content_digest(header.content, arrays.digest())
            header.digest = message_digest(header.envelope, whole)


def change_stream(kind: Any) -> Any:
    def mutate(data: bytes, randomness: Random) -> bytes:
        flags, *frames = unpack(data, MOST_FRAMES) or [b""]
        if randomness.random() < 0.1 or not frames:
            return pack([bytes([randomness.randrange(4)]), *frames])
        at = randomness.randrange(len(frames))
        match randomness.randrange(10):
            case 0:
                del frames[at]
            case 1:
                frames.insert(at, frames[randomness.randrange(len(frames))])
            case 2:
                randomness.shuffle(frames)
            case _:
                frames[at] = _change_frame(kind(), frames[at], randomness)
        return pack([flags, *frames])

    return mutate


def _change_frame(frame: Any, data: bytes, randomness: Random) -> bytes:
    try:
        frame.ParseFromString(data)
    except DecodeError:
        return change_bytes(data, randomness)
    if frame.WhichOneof("kind") == "header" and randomness.random() < 0.8:
        header = frame.header
        if randomness.random() < 0.4:
            header.envelope = changed(pb.Envelope(), header.envelope, randomness)
        else:
            header.content = changed(pb.Content(), header.content, randomness)
        return bytes(frame.SerializeToString())
    return changed(frame, data, randomness)

"""Frames from the other end of a stream, of a site to the server and of the server to a site."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

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
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Frame
from hanse.aggregation import Checks
from hanse.errors import HanseError
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    METRICS,
    ROUND,
    TERMS,
    WEIGHT,
    Envelope,
    become_server_app,
    open_envelope,
    to_record,
)
from hanse.identity import node_id_of
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.content import descriptors, restore
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, content_hash, encode, make_header, message_digest
from hanse_client.link.coordinator import RefusedError
from hanse_client.link.desk import Desk
from hanse_client.link.stream import Stream
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from hanse_client.site import AllowedTask
from hanse_server.audit import ServerTrail
from hanse_server.journal import Entry, Journal
from hanse_server.link.exchange import Exchange
from hanse_server.link.instruction import Instruction, Reply
from hanse_server.link.session import Session, Shown
from hanse_server.link.slots import Slots
from hanse_server.metrics import ServerMetrics
from hanse_server.replies import ReplyDesk
from hanse_server.simulation.grid import LocalGrid
from hanse_server.updates import masked_specs, specs_of
from prometheus_client import CollectorRegistry

from tests.fuzz.mutation import change_bytes, change_message, pack, unpack
from tests.fuzz.target import Target
from tests.harbour import Harbour, job, site

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
_REPAIR, _MASKED = 1, 2
_MOST_FRAMES = 12
_CHECKS = Checks(max_update_norm=10.0, beyond="clip", metrics={"loss": (0.0, 9.0)})


def _contents() -> list[RecordDict | FlowerError]:
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


# --- contents: what an assembled message holds, through the server's desk -------------------------


class _NoEngine:
    def execute(self, messages: Any) -> Any:
        raise AssertionError("nothing is executed here")

    def close(self) -> None:
        pass


class _Desks:
    """The server's desk for replies of one site."""

    def __init__(self) -> None:
        self._metrics = ServerMetrics(CollectorRegistry())
        self._grid = LocalGrid(RUN_ID, (SITE,), _NoEngine())
        become_server_app(RUN_ID)
        content = RecordDict({ARRAYS: to_record(MODEL)})
        self._asked = Message(content, ASKED.dst_node_id, MessageType.TRAIN)

    def take(self, replies: Sequence[Message], *, masked: bool) -> None:
        specs = masked_specs(SPECS) if masked else SPECS
        desk = ReplyDesk(
            [self._asked],
            self._grid,
            self._metrics,
            specs=specs,
            checks=_CHECKS,
            deadline=60.0,
        )
        list(desk.pass_on(replies))


def contents(folder: Path) -> Target:
    """Flags, a Content, and the bytes of its arrays in order."""
    desks = _Desks()

    def run(data: bytes) -> None:
        flags, described, *bodies = unpack(data, 40) + [b""] * 2
        try:
            content = pb.Content.FromString(described)
        except DecodeError:
            return  # gRPC ends the stream
        for array, body in zip(descriptors(content), bodies, strict=False):
            array.size = len(body)
        sizes = [array.size for array in descriptors(content)]
        packed = pb.Envelope(**vars(ANSWER)).SerializeToString()
        header = pb.Header(
            envelope=packed,
            content=content.SerializeToString(),
            body_size=min(sum(sizes), 2**64 - 1),
        )
        Assembler(header, LIMITS)
        given = iter([*bodies, *(bytes(size) for size in sizes[len(bodies) :])])
        reply = open_envelope(ANSWER, restore(content, given))
        desks.take([reply], masked=flags[:1] == b"\1")

    def mutate(data: bytes, randomness: Random) -> bytes:
        parts = unpack(data, 40)
        while len(parts) < 2:
            parts.append(b"")
        which = randomness.randrange(len(parts))
        if which == 0:
            parts[0] = randomness.choice((b"", b"\1"))
        elif which == 1 or randomness.random() < 0.3:
            parts[1] = _changed(pb.Content(), parts[1], randomness)
        else:
            parts[which] = change_bytes(parts[which], randomness)
        return pack(parts)

    seeds = []
    for content in _contents():
        encoded = encode(content)
        parts = [encoded.content, *map(bytes, encoded.body)]
        seeds += [pack([flag, *parts]) for flag in (b"", b"\1")]
    return Target(run=run, seeds=seeds, mutate=mutate)


def _changed(kind: Frame, data: bytes, randomness: Random) -> bytes:
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


# --- streams --------------------------------------------------------------------------------------


def _stream_of(content: RecordDict | FlowerError, envelope: Envelope, kind: Any) -> list[bytes]:
    """The frames of a message, its body in two chunks."""
    encoded = encode(content)
    name = envelope.reply_to or envelope.message_id
    frames = [kind(header=make_header(encoded, envelope))]
    for offset, data in chunks(encoded):
        half = len(data) // 2
        for start, piece in ((0, data[:half]), (half, data[half:])):
            chunk = pb.Chunk(message_id=name, offset=offset + start, data=piece)
            frames.append(kind(chunk=chunk))
    return [frame.SerializeToString() for frame in frames]


def _parsed(data: bytes, kind: Any) -> tuple[int, list[Any]]:
    """Flags and frames of an input; what gRPC could not parse ends the stream there."""
    flags, *packed = unpack(data, _MOST_FRAMES) or [b""]
    frames: list[Any] = []
    with suppress(DecodeError):
        frames.extend(kind.FromString(each) for each in packed)
    number = flags[0] if flags else 0
    if number & _REPAIR:
        _repair(frames)
    return number, frames


def _repair(frames: Sequence[Any]) -> None:
    """Make headers fit what follows them, so that a change goes deeper than the digest."""
    body = b"".join(frame.chunk.data for frame in frames if frame.HasField("chunk"))
    offset = 0
    for frame in frames:
        if frame.HasField("chunk"):
            frame.chunk.offset = offset
            offset += len(frame.chunk.data)
        elif frame.HasField("header"):
            header = frame.header
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
            sha = content_hash(header.content)
            sha.update(body)
            header.digest = message_digest(header.envelope, sha.digest())


def _change_stream(kind: Any) -> Any:
    def mutate(data: bytes, randomness: Random) -> bytes:
        flags, *frames = unpack(data, _MOST_FRAMES) or [b""]
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
    if frame.HasField("header") and randomness.random() < 0.8:
        header = frame.header
        if randomness.random() < 0.4:
            header.envelope = _changed(pb.Envelope(), header.envelope, randomness)
        else:
            header.content = _changed(pb.Content(), header.content, randomness)
        return bytes(frame.SerializeToString())
    return _changed(frame, data, randomness)


def from_site(folder: Path) -> Target:
    """Frames that a site sends: the exchange puts replies together, the desk looks at them."""
    journal = Journal(folder / "journal.sqlite")
    names = {"instruction": ASKED.message_id, "site": SITE, "run_id": RUN_ID}
    journal.owe([Entry(**names, message_type="train", group_id="1")])  # type: ignore[arg-type]
    metrics, desks = ServerMetrics(CollectorRegistry()), _Desks()
    encoded = encode(RecordDict({ARRAYS: to_record(MODEL)}))
    instruction = Instruction(site=SITE, envelope=ASKED, encoded=encoded, limits=LIMITS)
    certificate = Shown(fingerprint="f" * 64, expires=datetime.max.replace(tzinfo=UTC))

    def run(data: bytes) -> None:
        flags, frames = _parsed(data, pb.SiteFrame)
        exchange = Exchange(journal, metrics, LIMITS, ServerTrail(None))
        answers: list[Reply] = []
        exchange.push([instruction], answers.append, Slots(1))
        session = Session(SITE, certificate, lambda site, size: None)
        hello = frames[0].hello if frames and frames[0].HasField("hello") else pb.Hello()
        exchange.joined(session, hello)
        refusals: list[HanseError] = []
        for frame in frames:
            try:
                if frame.HasField("header"):
                    exchange.on_header(session, frame.header)
                elif frame.HasField("chunk"):
                    exchange.on_chunk(session, frame.chunk)
            except HanseError as refusal:  # ends the stream
                refusals.append(refusal)
                break
        exchange.left(session)
        desks.take([answer.message for answer in answers], masked=bool(flags & _MASKED))
        if refusals:
            raise refusals[0]

    hello = pb.Hello(held=[ASKED.message_id, "c"], busy=["d"], protocol=pb.Protocol(major=1))
    hello.partial.add(message_id=ASKED.message_id, received=10)
    seeds = [
        pack([bytes([flags]), *begin, *_stream_of(content, ANSWER, pb.SiteFrame)])
        for flags in (_REPAIR, _REPAIR | _MASKED)
        for begin in ([], [pb.SiteFrame(hello=hello).SerializeToString()])
        for content in _contents()
    ]
    mutate = _change_stream(pb.SiteFrame)
    return Target(run=run, seeds=seeds, mutate=mutate, close=journal.close)


class _Worker:
    """Takes instructions as far as the site's gates; none is trained on."""

    def __init__(self, harbour: Harbour) -> None:
        self._runtime = harbour.runtime
        self.refusals: list[HanseError] = []

    def submit(self, instruction: Message) -> None:
        try:
            if instruction.has_error():
                return
            if instruction.metadata.message_type in ("train", "evaluate"):
                self._runtime.accept(instruction)
            else:
                self._runtime.masked(instruction)
        except HanseError as refusal:
            self.refusals.append(refusal)

    def refuse(self, instruction: Message, error: HanseError) -> None:
        self.refusals.append(error)

    def withdraw(self, instructions: Any) -> list[str]:
        return list(instructions)


class AskedSite:
    """A site that is asked to train under a job of any text, of the tasks given."""

    def __init__(self, folder: Path, *tasks: str) -> None:
        allowed = tuple(AllowedTask(name=name) for name in tasks)
        at = site(folder, tasks=allowed, max_model_mb=10.0, allow_training_without_privacy=True)
        self._harbour = Harbour(folder, at)
        self._model = to_record({"weight": torch.zeros(1, 1), "bias": torch.zeros(1)})

    def ask(self, text: bytes) -> None:
        """Let the instruction through all gates that come before the ledger."""
        config = ConfigRecord({JOB: text.decode("utf-8", "replace"), ROUND: 1})
        content = RecordDict({ARRAYS: self._model, CONFIG: config})
        self._harbour.runtime.accept(open_envelope(TO_HARBOUR, content))

    def close(self) -> None:
        """Close the site's ledger."""
        self._harbour.ledger.close()


def to_site(folder: Path) -> Target:
    """Frames that the server sends: a site's stream, and its gates as far as the ledger."""
    outbox = Outbox(folder / "outbox.sqlite")
    header = make_header(encode(FlowerError(2)), ANSWER)
    outbox.put("held", header.SerializeToString(), [(0, b"abc"), (3, b"def")])
    metrics = ClientMetrics(CollectorRegistry())
    harbour = Harbour(folder, site(folder))
    loop = asyncio.new_event_loop()

    async def feed(frames: Sequence[Any]) -> list[HanseError]:
        worker: Any = _Worker(harbour)
        desk = Desk(outbox, worker, metrics, LIMITS, {"held"}, {"busy"})
        stream = Stream(desk)
        for frame in frames:
            try:
                await stream.on_frame(frame)
            except RefusedError:  # the server said goodbye
                return []
            except HanseError as refusal:  # ends the stream
                return [refusal]
        stream.leave()
        async for _ in stream.duplex.outgoing:
            pass
        await stream.duplex.outgoing.discard()
        desk.hello()
        return list(worker.refusals)

    def run(data: bytes) -> None:
        _, frames = _parsed(data, pb.ServerFrame)
        frames = [each for each in frames if not each.HasField("settle")]  # the outbox is shared
        for refusal in loop.run_until_complete(feed(frames)):
            raise refusal

    config = ConfigRecord({JOB: job().instruction, ROUND: 1, "proximal-mu": 0.5})
    line = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    asked = RecordDict({ARRAYS: to_record(line), CONFIG: config})
    others = [
        pb.ServerFrame(ask=pb.Ask(message_id="held")),
        pb.ServerFrame(ack=pb.Ack(message_id="held", received=2)),
        pb.ServerFrame(goodbye=pb.Goodbye(reason="wire", message="no", retry=True)),
        pb.ServerFrame(heartbeat=pb.Heartbeat()),
    ]
    seeds = [
        pack([b"\1", *_stream_of(asked, replace(TO_HARBOUR, message_type=kind), pb.ServerFrame)])
        for kind in ("train", "evaluate", "query.masking_keys", "query.unmask")
    ]
    seeds += [
        pack([b"\1", *_stream_of(each, TO_HARBOUR, pb.ServerFrame), other.SerializeToString()])
        for each, other in zip(_contents(), others, strict=False)
    ]

    def close() -> None:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        outbox.close()
        harbour.ledger.close()

    return Target(run=run, seeds=seeds, mutate=_change_stream(pb.ServerFrame), close=close)

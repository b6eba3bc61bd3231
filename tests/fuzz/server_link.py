"""Frames from a site: the exchange puts replies together, the desk looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from flwr.app import (
    Message,
    MessageType,
    RecordDict,
)
from google.protobuf.message import DecodeError
from hanse.errors import HanseError
from hanse.flower import (
    ARRAYS,
    become_server_app,
    open_envelope,
    to_record,
)
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.content import descriptors, restore
from hanse.wire.frames import header_of
from hanse.wire.message import encode
from hanse_server.audit import ServerTrail
from hanse_server.journal import Entry, Journal
from hanse_server.link.exchange import Exchange
from hanse_server.link.instruction import Instruction, Reply
from hanse_server.link.session import Session, Shown
from hanse_server.link.slots import Slots
from hanse_server.metrics import ServerMetrics
from hanse_server.replies import ReplyDesk
from hanse_server.simulation.grid import LocalGrid
from hanse_server.updates import masked_specs
from prometheus_client import CollectorRegistry

from tests.fuzz.frames import (
    ANSWER,
    ASKED,
    CHECKS,
    LIMITS,
    MASKED,
    MODEL,
    REPAIR,
    RUN_ID,
    SITE,
    SPECS,
    change_stream,
    changed,
    contents,
    parsed,
    stream_of,
)
from tests.fuzz.mutation import change_bytes, pack, unpack
from tests.fuzz.target import Target


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
            checks=CHECKS,
            deadline=60.0,
        )
        list(desk.pass_on(replies))


def replies(folder: Path) -> Target:
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
            parts[1] = changed(pb.Content(), parts[1], randomness)
        else:
            parts[which] = change_bytes(parts[which], randomness)
        return pack(parts)

    seeds = []
    for content in contents():
        encoded = encode(content)
        parts = [encoded.content, *map(bytes, encoded.body)]
        seeds += [pack([flag, *parts]) for flag in (b"", b"\1")]
    return Target(run=run, seeds=seeds, mutate=mutate)


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
        flags, frames = parsed(data, pb.SiteFrame)
        exchange = Exchange(journal, metrics, LIMITS, ServerTrail(None))
        answers: list[Reply] = []
        exchange.push([instruction], answers.append, Slots(1))
        session = Session(SITE, certificate, exchange.window, lambda site, size: None)
        hello = (
            frames[0].hello if frames and frames[0].WhichOneof("kind") == "hello" else pb.Hello()
        )
        exchange.joined(session, hello)
        refusals: list[HanseError] = []
        for frame in frames:
            try:
                if frame.WhichOneof("kind") == "header":
                    exchange.on_header(session, *header_of(frame))
                elif frame.WhichOneof("kind") == "chunk":
                    exchange.on_chunk(session, frame.chunk)
            except HanseError as refusal:  # ends the stream
                refusals.append(refusal)
                break
        exchange.left(session)
        desks.take([answer.message for answer in answers], masked=bool(flags & MASKED))
        if refusals:
            raise refusals[0]

    hello = pb.Hello(held=[ASKED.message_id, "c"], busy=["d"], protocol=pb.Protocol(major=1))
    hello.partial.add(message_id=ASKED.message_id, received=10)
    seeds = [
        pack([bytes([flags]), *begin, *stream_of(content, ANSWER, pb.SiteFrame, inline=inline)])
        for inline in (False, True)
        for flags in (REPAIR, REPAIR | MASKED)
        for begin in ([], [pb.SiteFrame(hello=hello).SerializeToString()])
        for content in contents()
    ]
    mutate = change_stream(pb.SiteFrame)
    return Target(run=run, seeds=seeds, mutate=mutate, close=journal.close)

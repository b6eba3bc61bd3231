"""What a site does with the frames of its server, whatever the server believes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from hanse.errors import HanseError
from hanse.flower import Envelope, open_envelope
from hanse.wire import hanse_pb2 as pb
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, encode, make_header
from hanse_client.link.desk import MOST_PARTIAL, Desk
from hanse_client.link.stream import Stream
from hanse_client.link.worker import Worker
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from prometheus_client import CollectorRegistry

CONTENT = RecordDict({"arrays": ArrayRecord({"w": Array("uint8", (9,), "raw", b"123456789")})})


class IdleWorker(Worker):
    """Takes instructions and never begins."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.refused: list[tuple[str, HanseError]] = []

    def submit(self, instruction: Message) -> None:
        self.submitted.append(instruction.metadata.message_id)

    def refuse(self, instruction: Message, error: HanseError) -> None:
        self.refused.append((instruction.metadata.message_id, error))

    def withdraw(self, instructions: Iterable[str]) -> list[str]:
        withdrawn = [each for each in instructions if each in self.submitted]
        self.submitted = [each for each in self.submitted if each not in withdrawn]
        return withdrawn


@pytest.fixture
def worker() -> IdleWorker:
    return IdleWorker()


@pytest.fixture
def desk(tmp_path: Path, worker: IdleWorker) -> Iterator[Desk]:
    outbox = Outbox(tmp_path / "outbox.sqlite")
    yield Desk(
        outbox=outbox,
        worker=worker,
        metrics=ClientMetrics(CollectorRegistry()),
        limits=Limits(),
        held=set(),
    )
    outbox.close()


def envelope(name: str) -> Envelope:
    return Envelope(message_id=name, run_id=1, src_node_id=1, dst_node_id=2, message_type="train")


def header(name: str) -> pb.ServerFrame:
    return pb.ServerFrame(header=make_header(encode(CONTENT), envelope(name)))


def body(name: str, start: int = 0) -> Iterator[pb.ServerFrame]:
    for offset, data in chunks(encode(CONTENT), start):
        yield pb.ServerFrame(chunk=pb.Chunk(message_id=name, offset=offset, data=data))


def serve(desk: Desk, *frames: pb.ServerFrame) -> list[Any]:
    """Feed frames to a fresh stream; what it answers."""

    async def main() -> list[Any]:
        stream = Stream(desk)
        for frame in frames:
            await stream.on_frame(frame)
        await asyncio.sleep(0)
        answers: list[Any] = []
        iterator = aiter(stream.duplex.outgoing)
        while True:
            try:
                answers.append(await asyncio.wait_for(anext(iterator), 0.2))
            except TimeoutError:
                return answers

    return asyncio.run(main())


def hold(desk: Desk, name: str) -> pb.Header:
    """Put a reply to the instruction ``name`` into the outbox."""
    asked = open_envelope(envelope(name), RecordDict())
    reply = Message(CONTENT, reply_to=asked)
    encoded = encode(reply.content)
    kept = make_header(encoded, Envelope.of(reply, "reply"))
    desk.outbox.put(name, kept.SerializeToString(), encoded.body)
    desk.held.add(name)
    return kept


def test_an_instruction_that_comes_twice_is_submitted_once(desk: Desk, worker: IdleWorker) -> None:
    serve(desk, header("one"), *body("one"), header("one"), *body("one"))
    serve(desk, header("one"), *body("one"))  # and over another stream
    assert worker.submitted == ["one"]


def test_an_instruction_that_was_answered_is_answered_from_the_outbox(
    desk: Desk, worker: IdleWorker
) -> None:
    kept = hold(desk, "one")
    (answer,) = serve(desk, header("one"), *body("one"))
    assert answer.header == kept
    assert worker.submitted == []


def test_what_was_settled_is_not_done_twice(desk: Desk, worker: IdleWorker) -> None:
    hold(desk, "one")
    serve(desk, pb.ServerFrame(settle=pb.Settle(message_ids=["one"])))
    assert desk.outbox.instructions() == []
    serve(desk, header("one"), *body("one"))
    ((refused, error),) = worker.refused
    assert (refused, error.label, worker.submitted) == ("one", "policy", [])


def test_what_is_settled_before_it_is_begun_is_dropped(desk: Desk, worker: IdleWorker) -> None:
    serve(desk, header("whole"), *body("whole"), header("part"))
    assert (desk.busy, set(desk.partial)) == ({"whole"}, {"part"})
    serve(desk, pb.ServerFrame(settle=pb.Settle(message_ids=["whole", "part"])), *body("part"))
    assert (desk.busy, set(desk.partial), worker.submitted) == (set(), set(), [])


def test_a_reply_is_handed_over_from_the_byte_asked_for(desk: Desk) -> None:
    hold(desk, "one")
    ack = pb.ServerFrame(ack=pb.Ack(message_id="one", received=4))
    (chunk,) = serve(desk, ack, ack)  # asked twice, sent once
    assert (chunk.chunk.offset, chunk.chunk.data) == (4, b"56789")


def test_asking_for_what_is_not_there_is_passed_over(desk: Desk) -> None:
    assert serve(desk, pb.ServerFrame(ask=pb.Ask(message_id="none"))) == []
    assert serve(desk, pb.ServerFrame(ack=pb.Ack(message_id="none"))) == []
    assert serve(desk, *body("none")) == []


def test_hello_tells_how_far_the_site_is(desk: Desk) -> None:
    hold(desk, "held")
    serve(desk, header("busy"), *body("busy"), header("partial"))
    serve(desk, pb.ServerFrame(chunk=pb.Chunk(message_id="partial", data=b"1234")))

    hello = desk.hello()

    assert list(hello.held) == ["held"]
    assert list(hello.busy) == ["busy"]
    assert [(each.message_id, each.received) for each in hello.partial] == [("partial", 4)]


def test_a_cut_off_instruction_goes_on_over_the_next_stream(desk: Desk, worker: IdleWorker) -> None:
    serve(desk, header("one"), pb.ServerFrame(chunk=pb.Chunk(message_id="one", data=b"1234")))
    serve(desk, header("one"), *body("one", start=4))
    assert worker.submitted == ["one"]
    assert not desk.partial


def test_pieces_of_instructions_that_never_end_do_not_pile_up(desk: Desk) -> None:
    serve(desk, *(header(f"cut-{number}") for number in range(20)))
    assert len(desk.partial) == MOST_PARTIAL
    assert "cut-19" in desk.partial


Damage = Callable[[pb.Header], None]


def _too_large(made: pb.Header) -> None:
    made.body_size = 2**60


def _digest(made: pb.Header) -> None:
    made.digest = bytes(32)


@pytest.mark.parametrize("damage", [_too_large, _digest])
def test_an_instruction_that_cannot_be_taken_in_is_answered(
    desk: Desk, worker: IdleWorker, damage: Damage
) -> None:
    damaged = header("one")
    damage(damaged.header)

    serve(desk, damaged, *body("one"))

    ((refused, error),) = worker.refused
    assert refused == "one"
    assert error.label == "wire"
    assert desk.busy == {"one"}
    assert not worker.submitted

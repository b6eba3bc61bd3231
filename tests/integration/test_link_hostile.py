"""Members that do not keep to the rules: they harm themselves at most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from hanse.errors import WireError
from hanse.flower import SERVER_NODE_ID, Envelope
from hanse.identity import node_id_of
from hanse.wire import hanse_pb2 as pb
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, encode, make_header
from hanse_client.link import Coordinator
from hanse_client.link.coordinator import make_hello, shake_hands

from tests.loopback import RUN_ID, Loopback, RunningServer, wait_until

SMALL = RecordDict({"arrays": ArrayRecord({"w": Array("uint8", (3,), "raw", b"abc")})})


class Liar:
    """A registered site that writes its frames by hand."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def say(self, **frame: Any) -> None:
        await self._stream.write(pb.SiteFrame(**frame))

    async def hear(self, kind: str) -> Any:
        """The next frame of a kind."""
        async with asyncio.timeout(10):
            while (frame := await self._stream.read()).WhichOneof("kind") != kind:
                pass
        return getattr(frame, kind)


@asynccontextmanager
async def liar(loopback: Loopback, name: str = "liar", **hello: Any) -> AsyncIterator[Liar]:
    identity = loopback.identity(loopback.issue(name))
    coordinator = Coordinator(address=f"127.0.0.1:{loopback.port}", identity=identity)
    async with coordinator.stream() as stream:
        await shake_hands(stream, make_hello(**hello))
        yield Liar(stream)


def envelope(
    instruction: str, *, site: str = "liar", run_id: int = RUN_ID, src_node_id: int | None = None
) -> Envelope:
    return Envelope(
        message_id="a" * 32,
        run_id=run_id,
        src_node_id=src_node_id or node_id_of(site),
        dst_node_id=SERVER_NODE_ID,
        message_type="train",
        reply_to=instruction,
    )


def ask(server: RunningServer, name: str) -> tuple[str, Iterator[Message]]:
    """An instruction's id, and its replies."""
    grid = server.grid()
    replies = iter(grid.send_and_receive([Message(SMALL, node_id_of(name), "train")], timeout=20))
    ((instruction, _),) = grid._awaited.items()
    return instruction, replies


def test_nobody_answers_for_another(loopback: Loopback) -> None:
    server = loopback.server()
    loopback.issue("honest")
    instruction, replies = ask(server, "honest")
    forged = make_header(encode(Error(1, "forged")), envelope(instruction, site="honest"))

    async def lie() -> None:
        async with liar(loopback) as stream:
            await stream.say(header=forged)
            await stream.say(chunk=pb.Chunk(message_id=instruction, data=b"abc"))
            await asyncio.sleep(0.2)

    asyncio.run(lie())
    loopback.client("honest", lambda message: Message(message.content, reply_to=message))

    assert next(replies).content == SMALL


@pytest.mark.parametrize(("run_id", "src_node_id"), [(RUN_ID, 5), (RUN_ID + 1, None)])
def test_a_reply_under_a_false_name_becomes_an_error(
    loopback: Loopback, run_id: int, src_node_id: int | None
) -> None:
    server = loopback.server()

    async def lie() -> Message:
        async with liar(loopback) as stream:
            instruction, replies = ask(server, "liar")
            await stream.hear("header")
            false = envelope(instruction, run_id=run_id, src_node_id=src_node_id)
            await stream.say(header=make_header(encode(SMALL), false))
            return await asyncio.to_thread(next, replies)

    reply = asyncio.run(lie())

    assert reply.error.code == WireError.exit_code
    assert reply.metadata.src_node_id == node_id_of("liar")


def test_a_body_that_is_not_what_was_announced_becomes_an_error(loopback: Loopback) -> None:
    server = loopback.server()

    async def lie() -> Message:
        async with liar(loopback) as stream:
            instruction, replies = ask(server, "liar")
            header = make_header(encode(SMALL), envelope(instruction))
            await stream.say(header=header)
            assert (await stream.hear("ack")).received == 0
            await stream.say(chunk=pb.Chunk(message_id=instruction, data=b"xyz"))
            return await asyncio.to_thread(next, replies)

    reply = asyncio.run(lie())

    assert reply.error.code == WireError.exit_code
    assert "changed on the way" in str(reply.error.reason)


def test_a_body_that_was_not_asked_for_is_dropped(loopback: Loopback) -> None:
    server = loopback.server()

    async def push() -> Message:
        async with liar(loopback) as stream:
            instruction, replies = ask(server, "liar")
            await stream.say(chunk=pb.Chunk(message_id=instruction, data=b"abc"))
            for _ in range(3):  # announced three times over, it takes one slot
                await stream.say(header=make_header(encode(SMALL), envelope(instruction)))
            await stream.hear("ack")
            for offset, data in chunks(encode(SMALL)):
                chunk = pb.Chunk(message_id=instruction, offset=offset, data=data)
                await stream.say(chunk=chunk)
            return await asyncio.to_thread(next, replies)

    assert asyncio.run(push()).content == SMALL


def test_a_body_in_a_header_is_larger_than_was_allowed(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanse_server.link.window.SendWindow.largest", 2)
    server = loopback.server()

    async def push() -> Message:
        async with liar(loopback) as stream:
            instruction, replies = ask(server, "liar")
            assert (await stream.hear("header")).inline == 2
            header = make_header(encode(SMALL), envelope(instruction))
            header.body = b"abc"
            await stream.say(header=header)
            return await asyncio.to_thread(next, replies)

    reply = asyncio.run(push())

    assert reply.error.code == WireError.exit_code
    assert "holds 3 bytes of a body, it was told that the most are 2" in str(reply.error.reason)


def test_declaring_a_body_takes_no_memory(loopback: Loopback) -> None:
    server = loopback.server(limits=Limits(max_body_bytes=2**50))
    size = 2**49  # no machine has it

    async def boast() -> None:
        async with liar(loopback) as stream:
            instruction, _ = ask(server, "liar")
            array = pb.Array(name="w", dtype="uint8", shape=[size], size=size)
            record = pb.Record(name="arrays", arrays=pb.Arrays(arrays=[array]))
            content = pb.Content(records=pb.Records(records=[record]))
            header = make_header(encode(SMALL), envelope(instruction))
            header.content, header.body_size = content.SerializeToString(), size
            await stream.say(header=header)
            await stream.hear("ack")

    asyncio.run(boast())
    wait_until(lambda: not server.link.connected())


def test_who_says_nothing_is_sent_away(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanse_server.link.reception.HELLO_SECONDS", 0.2)
    loopback.server()
    identity = loopback.identity(loopback.issue("mute"))

    async def wait() -> pb.Goodbye:
        coordinator = Coordinator(address=f"127.0.0.1:{loopback.port}", identity=identity)
        async with coordinator.stream() as stream:
            farewell: pb.Goodbye = await Liar(stream).hear("goodbye")
            return farewell

    assert asyncio.run(wait()).reason == "protocol"


def test_who_speaks_nonsense_is_told_so(loopback: Loopback) -> None:
    loopback.server()

    async def babble() -> pb.Goodbye:
        async with liar(loopback) as stream:
            await stream.say(header=pb.Header(envelope=b"\xff\xff"))
            farewell: pb.Goodbye = await stream.hear("goodbye")
            return farewell

    farewell = asyncio.run(babble())

    assert farewell.reason == "wire"
    assert "malformed" in farewell.message


def test_frames_of_a_later_version_are_passed_over(loopback: Loopback) -> None:
    server = loopback.server()

    async def speak() -> Message:
        async with liar(loopback, held=["never" * 6], capabilities=["of tomorrow"]) as stream:
            assert (await stream.hear("settle")).message_ids == ["never" * 6]
            instruction, replies = ask(server, "liar")
            await stream._stream.write(pb.SiteFrame.FromString(b"\xfa\x01\x03new"))
            await stream.say(header=make_header(encode(Error(9)), envelope(instruction)))
            return await asyncio.to_thread(next, replies)

    assert asyncio.run(speak()).error.code == 9

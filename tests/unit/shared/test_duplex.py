"""One end of a stream: the order of its frames, its end, and what it leaves behind."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from hanse.wire import duplex
from hanse.wire.duplex import Duplex, Outgoing


class Wire:
    """A stream made of queues. While it is blocked, nothing can be written to it."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[str] = []
        self.blocked = asyncio.Event()

    async def read(self) -> Any:
        return await self.incoming.get()

    async def write(self, frame: str) -> None:
        if self.blocked.is_set():
            await asyncio.Event().wait()
        self.written.append(frame)


async def ignore(frame: Any) -> None:
    """A peer's frame that nobody acts on."""


def test_single_frames_go_between_the_chunks_of_transfers_which_keep_their_order() -> None:
    outgoing: Outgoing[str] = Outgoing()

    async def transfer(name: str) -> AsyncGenerator[str, None]:
        for number in range(2):
            yield f"{name}{number}"

    async def main() -> list[str]:
        outgoing.transfer(transfer("a"))
        outgoing.transfer(transfer("b"))
        sent = []
        async for frame in outgoing:
            sent.append(frame)
            if frame == "a0":
                outgoing.put("urgent")
            if frame == "b1":
                outgoing.close()
        return sent

    assert asyncio.run(main()) == ["a0", "urgent", "a1", "b0", "b1"]


def test_a_transfer_that_is_cut_off_is_closed_before_the_stream_is_left() -> None:
    closed: list[str] = []

    async def transfer(name: str, wire: Wire) -> AsyncGenerator[str, None]:
        try:
            yield name
            wire.blocked.set()
            yield name
        finally:
            closed.append(name)

    async def main() -> str:
        wire, end = Wire(), Duplex("beat")
        cut = transfer("cut", wire)
        end.outgoing.transfer(cut)
        running = asyncio.create_task(end.run(wire, ignore, heartbeat_seconds=60))
        await wire.blocked.wait()
        await wire.incoming.put(grpc.aio.EOF)
        why = await running
        assert closed == ["cut"]  # `cut` is still referred to: no garbage collector did this
        return why

    assert asyncio.run(main()) == "the other side ended the stream"


def test_no_frame_is_held_while_the_stream_waits_for_the_next() -> None:
    class Piece(str):
        """A frame that can be watched."""

    async def transfer() -> AsyncGenerator[str, None]:
        yield watched("a chunk")

    def watched(text: str) -> Piece:
        piece = Piece(text)
        alive.append(weakref.ref(piece))
        return piece

    alive: list[weakref.ref[Piece]] = []
    sent: list[str] = []

    class Sink(Wire):
        async def write(self, frame: str) -> None:
            sent.append(str(frame))

    async def main() -> list[Piece | None]:
        wire, end = Sink(), Duplex("beat")
        await wire.incoming.put(watched("came"))
        end.outgoing.put(watched("single"))
        end.outgoing.transfer(transfer())
        running = asyncio.create_task(end.run(wire, ignore, heartbeat_seconds=60))
        while len(sent) < 3:
            await asyncio.sleep(0)
        held = [piece() for piece in alive]
        await wire.incoming.put(grpc.aio.EOF)
        await running
        return held

    assert asyncio.run(main()) == [None, None, None]
    assert sorted(sent) == ["a chunk", "beat", "single"]


def test_a_farewell_is_the_last_frame_and_nothing_is_heard_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplex, "LINGER_SECONDS", 0.2)
    heard: list[str] = []

    async def main() -> Wire:
        wire, end = Wire(), Duplex("beat")

        async def hear(frame: str) -> None:
            heard.append(frame)
            end.close("goodbye")

        for frame in ("first", "second"):
            await wire.incoming.put(frame)
        await end.run(wire, hear, heartbeat_seconds=60)
        return wire

    written = asyncio.run(main()).written
    assert written[-1] == "goodbye"
    assert written.count("goodbye") == 1
    assert heard == ["first"]


def test_a_farewell_that_cannot_be_sent_does_not_hold_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplex, "LINGER_SECONDS", 0.1)

    async def main() -> str:
        wire, end = Wire(), Duplex("beat")
        wire.blocked.set()
        end.close("goodbye")
        async with asyncio.timeout(5):
            return await end.run(wire, ignore, heartbeat_seconds=60)

    assert asyncio.run(main()) == "this side ended the stream"


@pytest.mark.parametrize(
    ("peer_ends", "why"),
    [(True, "the other side ended the stream"), (False, "this side ended the stream")],
)
def test_a_last_word_is_left_a_moment_to_be_read(
    monkeypatch: pytest.MonkeyPatch, peer_ends: bool, why: str
) -> None:
    monkeypatch.setattr(duplex, "LINGER_SECONDS", 0.3)

    async def main() -> str:
        wire, end = Wire(), Duplex("beat")
        end.close("goodbye", stay=True)
        running = asyncio.create_task(end.run(wire, ignore, heartbeat_seconds=60))
        await asyncio.sleep(0.1)
        assert wire.written[-1] == "goodbye"
        assert not running.done()
        if peer_ends:
            await wire.incoming.put(grpc.aio.EOF)
        return await running

    assert asyncio.run(main()) == why


def test_an_error_on_a_frame_ends_the_stream() -> None:
    async def refuse(frame: str) -> None:
        raise ValueError(frame)

    async def main() -> None:
        wire, end = Wire(), Duplex("beat")
        await wire.incoming.put("bad")
        await end.run(wire, refuse, heartbeat_seconds=60)

    with pytest.raises(ValueError, match="bad"):
        asyncio.run(main())

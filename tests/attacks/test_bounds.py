"""What the other side can have this side hold, write or wait for does not grow with its zeal."""

from __future__ import annotations

import asyncio
import logging
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from hanse.flower import ARRAYS
from hanse.identity import node_id_of
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.limits import Limits
from hanse.wire.message import encode, make_header
from hanse_server.link import slots
from hanse_server.link.exchange import Exchange
from hanse_server.link.manners import LINES_AT_ONCE
from hanse_server.link.session import STRAYS_AT_ONCE, Session

from tests.attacks.liar import LIAR, Liar, answer, enter, envelope_of, honest, knock
from tests.loopback import Loopback, RunningServer

BODY = 1_000_000


def big() -> RecordDict:
    """A model of some size."""
    return RecordDict({ARRAYS: ArrayRecord({"w": Array("uint8", (BODY,), "raw", bytes(BODY))})})


def ask(server: RunningServer, *names: str, seconds: float) -> Iterator[Message]:
    """Send a model of some size to sites."""
    grid = server.grid()
    messages = [Message(big(), node_id_of(name), "train") for name in names]
    return iter(grid.send_and_receive(messages, timeout=seconds))


async def _creep(liar: Liar, chunk: int, pause: float) -> None:
    """Take a slot, then send ``chunk`` bytes every ``pause`` seconds."""
    asked = await liar.asked()
    await liar.announce(asked, big())
    await liar.hear("ack")
    for offset in range(0, BODY, chunk or 1):
        if chunk:
            piece = pb.Chunk(message_id=asked.message_id, offset=offset, data=bytes(chunk))
            await liar.say(chunk=piece)
        await liar.say(heartbeat=pb.Heartbeat())  # who is silent is given up anyhow
        await asyncio.sleep(pause)


@pytest.mark.parametrize(
    ("chunk", "pause"), [(0, 0.2), (1, 0.2), (8_000, 0.1)], ids=["mute", "trickle", "just enough"]
)
def test_eight_that_hold_all_slots_do_not_starve_the_ninth(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, chunk: int, pause: float
) -> None:
    """The round would wait for two minutes; the honest site is heard long before."""
    monkeypatch.setattr(slots, "PROGRESS_SECONDS", 2.0)
    monkeypatch.setattr(slots, "LEAST_PROGRESS", 16_000)
    monkeypatch.setattr(slots, "LEAST_TURN_SECONDS", 3.0)
    if chunk > 1:  # it goes on as fast as it must: what ends is its turn
        monkeypatch.setattr(slots.Slots, "turn", _turn_of_a_short_round)
    server = loopback.server()
    names = [f"creeper-{number}" for number in range(8)]
    for name in (*names, "honest"):
        loopback.issue(name)

    async def attack() -> float:
        async with asyncio.TaskGroup() as group:
            creeping = [group.create_task(_one(loopback, name, chunk, pause)) for name in names]
            await asyncio.to_thread(server.await_sites, *names)
            replies = ask(server, *names, "honest", seconds=120.0)
            await asyncio.to_thread(_until_all_slots_are_held, server)
            loopback.client("honest", lambda message: Message(message.content, reply_to=message))
            began = time.monotonic()
            first = await asyncio.to_thread(next, replies)
            waited = time.monotonic() - began
            assert first.metadata.src_node_id == node_id_of("honest")
            assert first.has_content()
            for each in creeping:
                each.cancel()
            return waited

    assert asyncio.run(attack()) < 30.0


_turn = slots.Slots.turn


def _turn_of_a_short_round(self: slots.Slots, now: float) -> float:
    """As if the deadline were near, which it is only for who waits longer than a test does."""
    self.until = now
    return _turn(self, now)


async def _one(loopback: Loopback, name: str, chunk: int, pause: float) -> None:
    try:
        async with enter(loopback, name) as liar:
            await _creep(liar, chunk, pause)
    except Exception:  # noqa: BLE001, S110  it is sent away in the midst of it
        pass


def _until_all_slots_are_held(server: RunningServer) -> None:
    exchange: Exchange = server.link._exchange
    while sum(pending.granted for pending in [*exchange._pending.values()]) < 8:
        time.sleep(0.05)


def test_headers_that_nobody_asked_for_leave_nothing_behind(
    loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    server = loopback.server()
    kept: list[Session] = []

    async def flood() -> None:
        async with enter(loopback) as liar:
            kept.append(server.link._exchange.sessions[LIAR])
            for number in range(STRAYS_AT_ONCE // 2):
                await liar.announce(envelope_of(f"{number:032x}"), Error(1, "x" * 10_000))
                await liar.say(chunk=pb.Chunk(message_id=f"{number:032x}", data=bytes(1000)))
            await asyncio.sleep(0.5)

    caplog.set_level(logging.WARNING, logger="hanse.link")
    asyncio.run(flood())
    (session,) = kept
    assert (len(session.held), len(session.busy), len(session._due)) == (0, 0, 0)
    assert server.link._exchange._late == set()
    assert server.journal.unsettled() == []
    assert len(caplog.records) <= LINES_AT_ONCE


def test_strangers_and_offenders_cannot_fill_the_log(
    loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    server = loopback.server()
    loopback.issue("stranger", registered=False)

    async def knock_often() -> None:
        for _ in range(3 * LINES_AT_ONCE):
            async with knock(loopback, "stranger") as liar:
                await liar.farewell()

    caplog.set_level(logging.WARNING, logger="hanse.link")
    asyncio.run(knock_often())
    refused = server.metrics.registry.get_sample_value(
        "hanse_server_connections_refused_total", {"reason": "not_registered"}
    )
    assert refused == 3 * LINES_AT_ONCE
    assert LINES_AT_ONCE <= len(caplog.records) < 2 * LINES_AT_ONCE


def test_a_body_that_comes_byte_by_byte_takes_no_more_memory() -> None:
    """A list of pieces of one byte would take more than a hundred times the body."""
    size = 50_000
    content = RecordDict({ARRAYS: ArrayRecord({"w": Array("uint8", (size,), "raw", bytes(size))})})
    assembler = Assembler(make_header(encode(content), envelope_of("a" * 32)), Limits())
    tracemalloc.start()
    for offset in range(size):
        assembler.add(offset, bytes([offset % 256]))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4 * size


def test_one_who_answers_in_time_is_never_sent_away(loopback: Loopback) -> None:
    """The bounds are for who does nothing: a hundred rounds at full speed break none of them."""
    server = loopback.server()
    loopback.client("east", honest)
    server.await_sites("east")
    grid = server.grid()
    for number in range(100):
        message = Message(answer(), node_id_of("east"), "train", group_id=str(number))
        assert [reply.has_content() for reply in grid.send_and_receive([message], timeout=20)]
        grid.settle()
    dismissed = server.metrics.registry.get_sample_value(
        "hanse_server_site_dismissed_total", {"site": "east", "reason": "wire"}
    )
    assert dismissed is None
    assert server.metrics.registry.get_sample_value(
        "hanse_server_site_reconnects_total", {"site": "east"}
    ) in (None, 0.0)

"""Messages so small that their bodies go with their headers."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hanse.wire.limits import Limits
from hanse_client.link.stream import Stream
from hanse_server.link.reception import Reception
from hanse_server.link.session import Session

from tests.asking import ask, echo, weights
from tests.loopback import Loopback, wait_until


@pytest.mark.parametrize(
    ("megabytes", "said"),
    [
        (0.3, ["header", "header", "settle"]),
        (1.5, ["header", "chunk", "chunk", "header", "ack", "chunk", "chunk", "settle"]),
    ],
)
def test_a_small_message_is_one_frame_each_way(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, megabytes: float, said: list[str]
) -> None:
    frames: list[str] = []
    at_site, at_server = Stream.on_frame, Reception._on_frame

    async def heard_at_site(self: Stream, frame: Any) -> None:
        frames.append(frame.WhichOneof("kind"))
        await at_site(self, frame)

    async def heard_at_server(self: Reception, session: Session, frame: Any) -> None:
        frames.append(frame.WhichOneof("kind"))
        await at_server(self, session, frame)

    monkeypatch.setattr(Stream, "on_frame", heard_at_site)
    monkeypatch.setattr(Reception, "_on_frame", heard_at_server)
    server = loopback.server()
    client = loopback.client("north", echo)
    server.await_sites("north")
    grid = server.grid()

    (reply,) = ask(grid, weights(megabytes), "north")
    grid.settle()
    wait_until(lambda: not client.outbox.instructions())

    assert reply.content == weights(megabytes)
    assert [each for each in frames if each != "heartbeat"] == said


def test_the_longest_header_with_the_largest_body_in_it_is_let_through(loopback: Loopback) -> None:
    config = ConfigRecord({"text": "x" * 190_000})
    content = RecordDict({**weights(1.04), "config": config})
    server = loopback.server(limits=Limits(max_header_bytes=200_000))
    client = loopback.client("north", echo)
    server.await_sites("north")

    (reply,) = ask(server.grid(), content, "north")

    assert reply.content == content
    assert client.link._streams == 1  # a frame too large would have ended the first


def test_small_replies_beyond_the_room_for_all_wait_to_be_asked_for(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanse_server.link.exchange.ON_THE_WAY", 100_000)
    asked: list[str] = []
    grant = Session.grant

    def granted(self: Session, instruction: str, received: int, size: int) -> None:
        asked.append(instruction)
        grant(self, instruction, received, size)

    monkeypatch.setattr(Session, "grant", granted)
    names = [f"site-{number}" for number in range(4)]
    server = loopback.server()
    for name in names:
        loopback.client(name, echo)
    server.await_sites(*names)
    grid = server.grid()

    for server_round in (1, 2):
        replies = list(ask(grid, weights(0.05), *names, server_round=server_round))
        assert [each.content for each in replies] == [weights(0.05)] * 4
        grid.settle()

    assert len(asked) == 2 * 3  # the first may bring up to a MiB: the room for all


def test_a_small_reply_under_way_at_a_restart_waits_until_it_is_asked_for(
    loopback: Loopback,
) -> None:
    """The server that comes back has not said that there is room for it in the header."""
    begun, go = threading.Event(), threading.Event()

    def slow(message: Message) -> Message:
        begun.set()
        go.wait(20)
        return echo(message)

    first = loopback.server()
    loopback.client("north", slow)
    first.await_sites("north")
    ask(first.grid(), weights(0.1), "north")
    begun.wait(20)
    first.link.stop()
    first.journal.close()
    second = loopback.server()
    second.await_sites("north")

    replies = ask(second.grid(), weights(0.1), "north")
    go.set()

    assert [each.content for each in replies] == [weights(0.1)]

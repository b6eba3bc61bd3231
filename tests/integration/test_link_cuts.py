"""Connections that are cut off or fall silent half-way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from hanse.identity import node_id_of
from hanse_server.grpc_grid import GrpcGrid

from tests.loopback import Loopback, wait_until
from tests.wire_cutter import WireCutter

MIB = 1 << 20


@pytest.fixture
def cutter(loopback: Loopback) -> Iterator[WireCutter]:
    with WireCutter(loopback.port) as proxy:
        yield proxy


class Site:
    """Answers with ``reply`` (or what it got), and counts."""

    def __init__(self, reply: RecordDict | None = None) -> None:
        self.executed: list[str] = []
        self.reply = reply

    def __call__(self, message: Message) -> Message:
        self.executed.append(message.metadata.message_id)
        return Message(self.reply or message.content, reply_to=message)


def body(mebibytes: int) -> RecordDict:
    values = np.random.default_rng(mebibytes).integers(0, 255, mebibytes * MIB, dtype=np.uint8)
    return RecordDict({"arrays": ArrayRecord([values])})


def ask(grid: GrpcGrid, content: RecordDict, timeout: float = 30.0) -> list[Message]:
    message = Message(content, node_id_of("north"), "train")
    return list(grid.send_and_receive([message], timeout=timeout))


def test_a_reply_that_is_cut_off_goes_on_where_it_stopped(
    loopback: Loopback, cutter: WireCutter
) -> None:
    site = Site(reply=body(12))
    server = loopback.server()
    client = loopback.client("north", site, port=cutter.port)
    server.await_sites("north")
    cutter.cut_up_at = 8 * MIB

    (reply,) = ask(server.grid(), body(1))

    assert cutter.cuts == 1
    assert reply.content == body(12)
    assert len(site.executed) == 1
    # Whole chunks that had arrived were not sent again.
    assert server.link.traffic()[0] < 13 * MIB
    assert client.metrics.reconnects._value.get() == 1
    assert server.metrics.reconnects.labels("north")._value.get() == 1


def test_an_instruction_that_is_cut_off_goes_on_where_it_stopped(
    loopback: Loopback, cutter: WireCutter
) -> None:
    site = Site(reply=body(1))
    server = loopback.server()
    client = loopback.client("north", site, port=cutter.port)
    server.await_sites("north")
    cutter.cut_down_at = 8 * MIB

    (reply,) = ask(server.grid(), body(12))

    assert cutter.cuts == 1
    assert reply.content == body(1)
    assert len(site.executed) == 1
    assert client.metrics.received_bytes._value.get() < 12 * MIB + 10_000


def test_a_site_that_is_cut_off_while_it_works_is_not_asked_twice(
    loopback: Loopback, cutter: WireCutter
) -> None:
    go, begun = threading.Event(), threading.Event()
    executed: list[str] = []

    def work(message: Message) -> Message:
        executed.append(message.metadata.message_id)
        begun.set()
        go.wait(20)
        return Message(message.content, reply_to=message)

    server = loopback.server()
    loopback.client("north", work, port=cutter.port)
    server.await_sites("north")
    message = Message(body(1), node_id_of("north"), "train")
    replies = iter(server.grid().send_and_receive([message], timeout=30))
    assert begun.wait(10)

    cutter.cut()
    server.await_sites()
    server.await_sites("north")
    go.set()

    assert len(list(replies)) == 1
    assert len(executed) == 1
    assert server.link.traffic()[1] < 1.1 * MIB  # the instruction was sent once


def test_a_connection_that_falls_silent_is_given_up_by_both_sides(
    loopback: Loopback, cutter: WireCutter
) -> None:
    site = Site()
    server = loopback.server(heartbeat_seconds=0.2)
    client = loopback.client("north", site, port=cutter.port)
    server.await_sites("north")

    cutter.silent.set()
    server.await_sites(seconds=5)
    waiting_since = client.metrics.waiting_since.labels("server")
    wait_until(lambda: waiting_since._value.get() > 0, seconds=5)
    assert waiting_since._value.get() == pytest.approx(time.time(), abs=5)
    assert client.metrics.connected._value.get() == 0
    cutter.cut()
    cutter.silent.clear()

    assert len(ask(server.grid(), body(1))) == 1


def test_a_site_that_was_restarted_gets_in_after_its_dead_stream_is_given_up(
    loopback: Loopback, cutter: WireCutter
) -> None:
    server = loopback.server(heartbeat_seconds=0.5)
    before = loopback.client("north", Site(), port=cutter.port)
    server.await_sites("north")
    cutter.silent.set()  # as when its machine has lost its power
    before.link.stop()

    after = loopback.client("north", Site())

    taken = server.metrics.refused.labels("name_taken")
    wait_until(lambda: taken._value.get() >= 1)
    wait_until(lambda: after.metrics.connected._value.get() == 1)

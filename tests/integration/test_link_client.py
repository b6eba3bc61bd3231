"""The client's own life: its worker, its outbox, its stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hanse.errors import OutboxError
from hanse.identity import node_id_of
from hanse_client.outbox import Outbox

from tests.loopback import Loopback, RunningServer, wait_until


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def ask(server: RunningServer, *numbers: int, timeout: float = 20.0) -> Iterator[Message]:
    grid = server.grid()
    contents = [RecordDict({"config": ConfigRecord({"n": number})}) for number in numbers]
    messages = [Message(content, node_id_of("north"), "query") for content in contents]
    return iter(grid.send_and_receive(messages, timeout=timeout))


def test_instructions_are_carried_out_in_their_order_one_at_a_time(loopback: Loopback) -> None:
    done: list[object] = []
    under_way: list[int] = []

    def work(message: Message) -> Message:
        under_way.append(1)
        assert len(under_way) == 1
        time.sleep(0.01)
        under_way.pop()
        done.append(message.content.config_records["config"]["n"])
        return echo(message)

    server = loopback.server()
    loopback.client("north", work)
    server.await_sites("north")

    replies = list(ask(server, *range(8)))

    assert done == list(range(8))
    assert not any(reply.has_error() for reply in replies)


def test_a_long_training_does_not_silence_the_site(loopback: Loopback) -> None:
    server = loopback.server(heartbeat_seconds=0.1)

    def work(message: Message) -> Message:
        time.sleep(1.5)  # much more than it takes to be given up
        return echo(message)

    client = loopback.client("north", work)
    server.await_sites("north")

    assert len(list(ask(server, 1))) == 1
    assert client.metrics.reconnects._value.get() == 0


def test_stopping_waits_for_what_is_under_way(loopback: Loopback) -> None:
    begun = threading.Event()

    def work(message: Message) -> Message:
        begun.set()
        time.sleep(0.5)
        return echo(message)

    server = loopback.server()
    client = loopback.client("north", work, stop_seconds=10)
    server.await_sites("north")
    replies = ask(server, 1, 2)
    assert begun.wait(10)

    client.stop()

    assert client.outbox.instructions()  # the first; the second was never begun
    again = loopback.client("north", echo)
    assert len(list(replies)) == 2
    assert again.ended_by is None


def test_stopping_does_not_wait_for_ever(loopback: Loopback) -> None:
    begun, go = threading.Event(), threading.Event()

    def work(message: Message) -> Message:
        begun.set()
        go.wait(30)
        return echo(message)

    server = loopback.server()
    client = loopback.client("north", work, stop_seconds=0.3)
    server.await_sites("north")
    ask(server, 1)
    assert begun.wait(10)

    started = time.monotonic()
    client.stop()

    assert time.monotonic() - started < 3
    server.await_sites()
    go.set()


def test_a_client_that_waits_for_its_server_can_be_stopped(loopback: Loopback) -> None:
    client = loopback.client("north", echo)
    waiting = client.metrics.waiting_since.labels("server")
    wait_until(lambda: waiting._value.get() > 0)
    client.stop()
    assert client.ended_by is None


def test_a_client_connects_when_its_server_comes_up_later(loopback: Loopback) -> None:
    client = loopback.client("north", echo)
    time.sleep(0.7)
    server = loopback.server()
    server.await_sites("north")
    waiting_since = client.metrics.waiting_since
    wait_until(lambda: waiting_since.labels("server")._value.get() == 0)
    wait_until(lambda: waiting_since.labels("instruction")._value.get() > 0)


def test_a_full_disk_is_answered_and_the_site_lives_on(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    put = Outbox.put

    def put_unless_full(outbox: Outbox, *arguments: object) -> None:
        if full.is_set():
            raise OutboxError("outbox.sqlite: database or disk is full")
        put(outbox, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Outbox, "put", put_unless_full)
    server = loopback.server()
    client = loopback.client("north", echo)
    server.await_sites("north")

    full.set()
    (refused,) = ask(server, 1)
    full.clear()
    (served,) = ask(server, 2)

    assert refused.error.code == OutboxError.exit_code
    assert refused.error.reason == "outbox"
    assert served.has_content()
    assert len(client.outbox.instructions()) == 1
    assert client.metrics.outbox._value.get() == 1


def test_what_is_held_is_counted(loopback: Loopback) -> None:
    server = loopback.server()
    client = loopback.client("north", echo)
    server.await_sites("north")
    grid = server.grid()
    content = RecordDict({"config": ConfigRecord({"n": 1})})
    message = Message(content, node_id_of("north"), "query")

    list(grid.send_and_receive([message], timeout=20))
    assert client.metrics.outbox._value.get() == 1
    grid.settle()

    wait_until(lambda: client.metrics.outbox._value.get() == 0)

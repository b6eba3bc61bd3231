"""Messages over the link: what arrives, when, and how often it takes effect."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hanse.errors import PolicyError, WireError, WorkspaceError
from hanse.flower import to_record, to_tensors
from hanse.identity import node_id_of
from hanse.wire.limits import Limits
from hanse_server.audit import ServerTrail
from hanse_server.grid import HanseGrid
from hanse_server.journal import State

from tests.asking import ask, echo, weights
from tests.loopback import Loopback, wait_until

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


def test_every_dtype_and_record_comes_back_as_it_was(loopback: Loopback) -> None:
    shapes = ((), (0,), (0, 3), (5,), (2, 3))
    tensors = {
        f"{dtype} {shape}": torch.arange(6)[: int(np.prod(shape))].reshape(shape).to(dtype)
        for dtype in DTYPES
        for shape in shapes
    }
    foreign = ArrayRecord({"z": Array("odd", (2, 2), "somebody.elses", b"\0bytes")})
    content = RecordDict(
        {
            "z": to_record(tensors),
            "a": foreign,
            "metrics": MetricRecord({"loss": 0.1, "counts": [1, -2], "none": []}),
            "config": ConfigRecord({"yes": True, "raw": b"\xff", "names": ["x", "y"], "n": -3}),
        }
    )
    server = loopback.server()
    loopback.client("north", echo)
    server.await_sites("north")
    grid = server.grid()

    (reply,) = ask(grid, content, "north")

    assert list(reply.content) == list(content)
    assert list(reply.content["z"]) == list(tensors)
    assert reply.content == content
    for name, tensor in to_tensors(reply.content.array_records["z"]).items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_a_slow_site_does_not_hold_back_a_fast_one(loopback: Loopback) -> None:
    go = threading.Event()

    def slow(message: Message) -> Message:
        go.wait(20)
        return echo(message)

    server = loopback.server()
    loopback.client("fast", echo)
    loopback.client("slow", slow)
    server.await_sites("fast", "slow")
    grid = server.grid()

    replies = ask(grid, weights(0.1), "slow", "fast")

    assert next(replies).metadata.src_node_id == node_id_of("fast")
    assert [awaited.site for awaited in grid.awaited()] == ["slow"]
    go.set()
    assert next(replies).metadata.src_node_id == node_id_of("slow")
    assert next(replies, None) is None
    assert not grid.awaited()


def test_more_replies_than_the_server_holds_at_once_all_arrive(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanse_server.grpc_grid.REPLIES_IN_MEMORY", 2)
    names = [f"site-{number}" for number in range(5)]
    server = loopback.server()
    for name in names:
        loopback.client(name, echo)
    server.await_sites(*names)

    replies = ask(server.grid(), weights(1.5), *names)
    received_before = server.link.traffic()[0]
    wait_until(lambda: server.link.traffic()[0] - received_before > 3_000_000)
    time.sleep(0.3)

    assert server.link.traffic()[0] < 3_600_000  # two bodies; three wait at their sites
    assert len(list(replies)) == 5


def test_a_spool_without_room_is_no_fault_of_the_site(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, write = itertools.count(), os.pwrite

    def full_at_first(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full_at_first)
    server = loopback.server(spool=loopback.folder)
    loopback.client("north", echo)
    server.await_sites("north")

    (reply,) = ask(server.grid(), weights(10), "north")

    assert reply.content == weights(10)
    assert next(calls) > 10  # it went through the spool, in pieces
    assert "No space left on device" in caplog.text
    assert "for what it did" not in caplog.text


def test_a_site_whose_coming_cannot_be_written_down_is_not_there(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, joined = threading.Event(), ServerTrail.joined

    def full_at_first(trail: ServerTrail, *told: str) -> None:
        if refused.is_set():
            return joined(trail, *told)
        refused.set()
        raise WorkspaceError("the disk is full")

    monkeypatch.setattr(ServerTrail, "joined", full_at_first)
    server = loopback.server()
    client = loopback.client("north", echo)
    assert refused.wait(20)
    client.stop()
    wait_until(lambda: not server.link.connected(), 1)

    loopback.client("north", echo)
    server.await_sites("north")


def test_a_reply_after_the_timeout_is_dropped_and_counted(loopback: Loopback) -> None:
    go = threading.Event()

    def slow(message: Message) -> Message:
        go.wait(20)
        return echo(message)

    server = loopback.server()
    client = loopback.client("slow", slow)
    server.await_sites("slow")
    grid = server.grid()
    message = Message(weights(0.1), node_id_of("slow"), "train")

    assert list(grid.send_and_receive([message], timeout=0.2)) == []
    go.set()

    late = server.metrics.replies.labels("slow", "late")
    wait_until(lambda: late._value.get() == 1)
    assert client.outbox.instructions()  # until the round is safe: it may be run again
    grid.settle()
    wait_until(lambda: not client.outbox.instructions())


def test_push_and_pull(loopback: Loopback) -> None:
    server = loopback.server()
    loopback.client("north", echo)
    server.await_sites("north")
    grid = server.grid()
    content = weights(0.1)

    ids = grid.push_messages([Message(content, node_id_of("north"), "query") for _ in range(3)])

    assert len(set(ids)) == 3
    pulled: list[Message] = []
    deadline = time.monotonic() + 20
    while len(pulled) < 3 and time.monotonic() < deadline:
        pulled += grid.pull_messages(ids)
    assert {message.metadata.reply_to_message_id for message in pulled} == set(ids)
    assert grid.pull_messages(ids) == []


def test_what_goes_wrong_at_a_site_comes_back_as_an_error(loopback: Loopback) -> None:
    def refuse(message: Message) -> Message:
        raise PolicyError("max_steps = 5 is below 10")

    def crash(message: Message) -> Message:
        raise KeyError("patient 4711")

    server = loopback.server()
    loopback.client("strict", refuse)
    loopback.client("broken", crash)
    server.await_sites("strict", "broken")

    replies = {
        reply.metadata.src_node_id: reply.error
        for reply in ask(server.grid(), weights(0.1), "strict", "broken")
    }

    refused, crashed = replies[node_id_of("strict")], replies[node_id_of("broken")]
    assert (refused.code, refused.reason) == (40, "policy: max_steps = 5 is below 10")
    assert (crashed.code, crashed.reason) == (2, "KeyError")


def test_a_message_larger_than_a_side_takes_is_refused(loopback: Loopback) -> None:
    small = Limits(max_body_bytes=100_000)
    server = loopback.server()
    loopback.client("narrow", echo, limits=small)
    server.await_sites("narrow")

    (reply,) = ask(server.grid(), weights(0.2), "narrow")

    assert reply.error.code == WireError.exit_code
    assert "passes the limit, 100000" in str(reply.error.reason)


def test_a_reply_larger_than_the_server_takes_is_refused(loopback: Loopback) -> None:
    def grow(message: Message) -> Message:
        return Message(weights(0.3), reply_to=message)

    server = loopback.server(limits=Limits(max_body_bytes=250_000))
    loopback.client("wide", grow)
    server.await_sites("wide")

    (reply,) = ask(server.grid(), weights(0.2), "wide")

    assert reply.error.code == WireError.exit_code
    assert server.link.traffic()[0] < 10_000  # nothing of the body was sent


def test_the_server_comes_back_and_is_answered_from_the_outbox(loopback: Loopback) -> None:
    executed: list[str] = []

    def count(message: Message) -> Message:
        executed.append(message.metadata.message_id)
        return echo(message)

    first = loopback.server()
    client = loopback.client("north", count)
    first.await_sites("north")
    (before,) = ask(first.grid(), weights(0.5), "north")
    first.link.stop()  # before the round was settled
    first.journal.close()

    second = loopback.server()
    second.await_sites("north")
    grid = second.grid()
    (after,) = ask(grid, weights(0.5), "north")

    assert len(executed) == 1
    assert after.content == before.content
    assert after.metadata.reply_to_message_id == before.metadata.reply_to_message_id
    assert client.outbox.instructions() == executed
    assert second.link.traffic()[1] < 10_000  # the instruction was not sent again
    grid.settle()
    wait_until(lambda: not client.outbox.instructions())
    assert second.journal.state(executed[0]) is State.SETTLED


def test_a_round_that_was_interrupted_is_answered_from_the_outboxes(loopback: Loopback) -> None:
    executed: list[str] = []
    go_on = threading.Event()

    def count(message: Message) -> Message:
        executed.append(message.metadata.message_id)
        return echo(message)

    def wait(message: Message) -> Message:
        go_on.wait(20)
        return count(message)

    first = loopback.server()
    clients = loopback.client("north", count), loopback.client("south", wait)
    first.await_sites("north", "south")
    replies = ask(first.grid(), weights(0.1), "north", "south")
    next(replies)
    replies.close()  # type: ignore[attr-defined]  # as Ctrl-C does: nobody awaits the other one
    go_on.set()
    wait_until(lambda: all(client.outbox.instructions() for client in clients))
    first.link.stop()
    first.journal.close()

    second = loopback.server()
    second.await_sites("north", "south")
    grid = second.grid()
    grid.settle_kept([])  # no round of these has become durable
    again = list(ask(grid, weights(0.1), "north", "south"))

    assert [reply.has_error() for reply in again] == [False, False]
    assert len(executed) == len(set(executed)) == 2


def test_a_site_comes_back_and_is_told_what_was_settled_meanwhile(loopback: Loopback) -> None:
    server = loopback.server()
    client = loopback.client("north", echo)
    server.await_sites("north")
    grid = server.grid()
    list(ask(grid, weights(0.1), "north"))
    client.stop()
    server.await_sites()
    grid.settle()
    assert client.outbox.instructions()

    again = loopback.client("north", echo)

    wait_until(lambda: not again.outbox.instructions())


def test_an_instruction_waits_for_a_site_that_is_away(loopback: Loopback) -> None:
    server = loopback.server()
    loopback.issue("north")

    replies = ask(server.grid(), weights(0.1), "north")
    loopback.client("north", echo)

    assert next(replies).content == weights(0.1)


def test_a_new_round_has_new_ids_and_the_same_round_the_same(loopback: Loopback) -> None:
    server = loopback.server()
    loopback.client("north", echo)
    server.await_sites("north")

    def ids(grid: HanseGrid, server_round: int, content: RecordDict) -> list[str]:
        replies = ask(grid, content, "north", server_round=server_round)
        return [reply.metadata.reply_to_message_id for reply in replies]

    grid = server.grid()
    first = ids(grid, 1, weights(0.1))
    assert ids(server.grid(), 1, weights(0.1)) == first
    others = [ids(grid, 1, weights(0.1)), ids(grid, 2, weights(0.1)), ids(grid, 1, weights(0.2))]
    assert len({*first, *(other for (other,) in others)}) == 4


def test_a_grid_keeps_nothing_of_rounds_that_are_settled(loopback: Loopback) -> None:
    server = loopback.server()
    loopback.client("north", echo)
    server.await_sites("north")
    grid = server.grid()
    for server_round in range(3):
        assert len(list(ask(grid, weights(0.01), "north", server_round=server_round))) == 1
        grid.settle()
    assert not grid._sent

"""Replies that come after their round, over the link: folded once, or told to be lost."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from hanse.flower import ARRAYS, METRICS, WEIGHT, error_label, to_record
from hanse.identity import node_id_of
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.journal import State

from tests.loopback import Loopback, RunningClient, RunningServer, wait_until


class SlowSite:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()

    def __call__(self, message: Message) -> Message:
        self.asked.append(message.metadata.group_id)
        assert self.go.wait(20)
        return answer(message)


def answer(message: Message) -> Message:
    update = to_record({"w": torch.ones(1000)})
    told = MetricRecord({WEIGHT: 1.0})
    return Message(RecordDict({ARRAYS: update, METRICS: told}), reply_to=message)


def instructions(names: Iterable[str], number: int) -> list[Message]:
    content = RecordDict({ARRAYS: to_record({"w": torch.full((1000,), float(number))})})
    return [Message(content, node_id_of(each), "train", group_id=str(number)) for each in names]


def rounds_of(replies: Iterable[Message]) -> list[tuple[int, str]]:
    return [(reply.metadata.src_node_id, reply.metadata.group_id) for reply in replies]


FAST, SLOW = node_id_of("fast"), node_id_of("slow")


class Setting:
    """A fast site and a slow one, and a first round that has closed without the slow one."""

    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback
        self.site = SlowSite()
        self.server = loopback.server()
        self.fast = loopback.client("fast", answer)
        self.slow: RunningClient = loopback.client("slow", self.site, stop_seconds=0.1)
        self.server.await_sites("fast", "slow")
        self.grid = self.server.grid()
        replies = self.grid.collect(instructions(("fast", "slow"), 1), timeout=20)
        assert next(replies).metadata.src_node_id == FAST
        wait_until(lambda: self.site.asked == ["1"])
        replies.close()
        self.grid.settle()

    def another_server(self) -> tuple[RunningServer, GrpcGrid]:
        """The server dies and comes back."""
        self.server.link.stop()
        self.server.journal.close()
        server = self.loopback.server()
        return server, server.grid()


@pytest.fixture
def setting(loopback: Loopback) -> Setting:
    return Setting(loopback)


def test_it_comes_in_a_later_round_and_its_site_is_at_work_until_then(setting: Setting) -> None:
    grid = setting.grid
    assert grid.working() == {SLOW: "1"}
    assert [each.site for each in grid.awaited()] == ["slow"]
    replies = grid.collect(instructions(["fast"], 2), timeout=20)
    assert rounds_of([next(replies)]) == [(FAST, "2")]
    setting.site.go.set()
    assert rounds_of(replies) == [(SLOW, "1")]
    assert not grid.working()
    assert setting.site.asked == ["1"]
    grid.settle()
    wait_until(lambda: not setting.slow.outbox.instructions())


def test_the_deadline_closes_a_round_and_loses_nothing(setting: Setting) -> None:
    grid = setting.grid
    assert rounds_of(grid.collect(instructions(["fast"], 2), timeout=0.5)) == [(FAST, "2")]
    setting.site.go.set()
    assert rounds_of(grid.collect([], timeout=20)) == [(SLOW, "1")]


@pytest.mark.parametrize("answered", ["before", "after"])
def test_a_server_that_comes_back_takes_it_up(setting: Setting, answered: str) -> None:
    if answered == "before":  # the reply is here, and its round was not made durable
        setting.site.go.set()
        assert rounds_of(setting.grid.collect([], timeout=20)) == [(SLOW, "1")]
    server, grid = setting.another_server()
    setting.site.go.set()
    server.await_sites("fast", "slow")
    grid.take_up("train", "2")
    assert grid.working() == {SLOW: "1"}
    assert rounds_of(grid.collect([], timeout=20)) == [(SLOW, "1")]
    assert setting.site.asked == ["1"]


def test_the_round_under_way_is_asked_again_and_not_taken_up(setting: Setting) -> None:
    setting.site.go.set()
    assert rounds_of(setting.grid.collect([], timeout=20)) == [(SLOW, "1")]
    server, grid = setting.another_server()
    server.await_sites("fast", "slow")
    grid.take_up("train", "1")  # the first round was never made durable
    assert not grid.working()
    assert grid.owing("1") == frozenset({"slow"})  # the fast one's was settled
    again = grid.collect(instructions(["slow"], 1), timeout=20)
    assert rounds_of(again) == [(SLOW, "1")]
    assert setting.site.asked == ["1"]


def test_a_site_that_crashed_says_that_it_is_lost(setting: Setting) -> None:
    setting.slow.stop()
    setting.server.await_sites("fast")
    setting.site.go.set()  # what it was at ends after it has left, and is lost as in a crash
    wait_until(lambda: bool(setting.slow.outbox.instructions()))
    setting.slow.outbox.forget(setting.slow.outbox.instructions())
    setting.loopback.client("slow", lambda message: pytest.fail("it trained again"))
    (reply,) = setting.grid.collect([], timeout=20)
    assert error_label(reply.error) == "lost"
    assert not setting.grid.working()


def test_a_site_given_up_is_late(setting: Setting) -> None:
    (pending,) = setting.grid._open
    setting.grid.give_up([SLOW])
    assert not setting.grid.working()
    assert setting.server.journal.state(pending) is State.ABANDONED
    setting.site.go.set()
    assert rounds_of(setting.grid.collect(instructions(["slow"], 2), timeout=20)) == [(SLOW, "2")]
    late = setting.server.metrics.replies.labels("slow", "late")
    assert late._value.get() == 1

"""Who may come back when, who has held a slot for long enough, and what a reply may be."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from hanse.errors import WireError
from hanse.flower import ARRAYS, CONFIG, become_server_app, to_record
from hanse.wire.limits import Limits
from hanse.wire.message import encode
from hanse_server.bounds import HEADER_ROOM, reply_limits
from hanse_server.link import manners
from hanse_server.link.manners import Complaints, Manners
from hanse_server.link.slots import (
    LEAST_PROGRESS,
    LEAST_TURN_SECONDS,
    PROGRESS_SECONDS,
    Allotment,
    Progress,
    Slots,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_offender_waits_ever_longer_and_is_forgiven() -> None:
    clock = Clock()
    door, pauses = Manners(clock), []
    for _ in range(8):
        door.offended("north")
        began = clock.now
        while True:
            try:
                door.let_in("north")
                break
            except WireError as early:
                assert "may come back in" in early.message  # noqa: PT017
                clock.now += 0.5
        pauses.append(clock.now - began)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    door.let_in("south")  # the others are let in meanwhile
    clock.now += manners.FORGIVEN_SECONDS + 1
    door.offended("north")
    clock.now += 1.0
    door.let_in("north")


def test_streams_come_at_a_pace() -> None:
    clock = Clock()
    door = Manners(clock)
    for _ in range(manners.STREAMS_AT_ONCE):
        door.let_in("north")
    with pytest.raises(WireError, match="opens streams too often"):
        door.let_in("north")
    clock.now += 1 / manners.STREAMS_PER_SECOND
    door.let_in("north")


def test_of_many_complaints_some_are_written_and_the_rest_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints = Complaints(logging.getLogger("hanse.link"))
    caplog.set_level(logging.WARNING, logger="hanse.link")
    for number in range(1000):
        complaints.tell("north", f"complaint {number}")
    complaints.tell("south", "one")
    of_north = [r.getMessage() for r in caplog.records if "north" in r.getMessage()]
    assert len(of_north) == manners.LINES_AT_ONCE
    assert caplog.records[-1].getMessage() == "south: one"
    now = time.monotonic() + 60
    monkeypatch.setattr("hanse_server.link.manners.time.monotonic", lambda: now)
    complaints._lines["north"]._clock = lambda: now
    complaints.tell("north", "again")
    assert caplog.records[-1].getMessage() == "north: again (and 980 more like it, untold)"


def test_a_reply_has_to_get_on() -> None:
    slots, progress = Slots(8), Progress(since=0.0, received=0, at=0.0)
    assert progress.complaint(LEAST_PROGRESS - 1, slots, PROGRESS_SECONDS) == ""
    assert progress.complaint(LEAST_PROGRESS, slots, PROGRESS_SECONDS) == ""
    late = 2 * PROGRESS_SECONDS + 1
    told = progress.complaint(LEAST_PROGRESS + 9, slots, late)
    assert told.startswith("a reply advanced by 9 bytes in 31 s")


def test_a_turn_is_a_share_of_the_time_left_while_others_wait() -> None:
    slots = Slots(8, 1000.0)
    assert slots.turn(0.0) == float("inf")
    slots.waiting = {str(number): None for number in range(8)}
    assert slots.turn(0.0) == 500.0
    assert slots.turn(900.0) == LEAST_TURN_SECONDS
    progress = Progress(since=0.0, received=0, at=400.0)
    assert "others wait" in progress.complaint(LEAST_PROGRESS, slots, 400.0)
    slots.waiting.clear()
    assert progress.complaint(2 * LEAST_PROGRESS, slots, 400.0) == ""


def test_what_replies_bring_along_is_so_much_for_all() -> None:
    allotment = Allotment(100)
    assert [allotment.allot(name, 60) for name in ("a", "b", "c", "a")] == [60, 40, 0, 60]
    assert [allotment.of(name) for name in ("a", "b", "c", "d")] == [60, 40, 0, 0]
    for name in ("a", "a", "c", "d"):
        allotment.give_back(name)
    assert [allotment.allot(name, 60) for name in ("c", "d")] == [60, 0]


def asked(kind: str, **tensors: torch.Tensor) -> Message:
    become_server_app(1)
    content = RecordDict({ARRAYS: to_record(tensors), CONFIG: ConfigRecord({"job": "x" * 100})})
    return Message(content, 5, kind)


def test_an_update_may_be_as_large_as_the_model_or_its_masks() -> None:
    model = {"w": torch.zeros(1000, dtype=torch.bfloat16), "b": torch.zeros(10).double()}
    message = asked(MessageType.TRAIN, **model)
    encoded = encode(message.content)
    limits = reply_limits(message, encoded, Limits())
    assert 4 * 1000 + 8 * 10 <= limits.max_body_bytes <= 4 * 1000 + 8 * 10 + 4 * 256
    assert limits.max_arrays == 2
    assert limits.max_header_bytes == len(encoded.content) + HEADER_ROOM
    assert reply_limits(message, encoded, Limits(max_body_bytes=9)).max_body_bytes == 9


def test_nothing_but_training_is_answered_with_arrays() -> None:
    message = asked(MessageType.EVALUATE, w=torch.zeros(1000))
    limits = reply_limits(message, encode(message.content), Limits())
    assert (limits.max_body_bytes, limits.max_arrays) == (0, 0)

"""What is told as a stream opens is bounded; useless frames are put up with for a while."""

from __future__ import annotations

import math

import pytest
from hanse.errors import WireError
from hanse.wire import hanse_pb2 as pb
from hanse.wire.allowance import Allowance
from hanse.wire.protocol import MOST_TOLD, check_hello, error_of, heartbeat_of, versions


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_allowance_is_used_up_and_comes_back() -> None:
    clock = Clock()
    allowance = Allowance(most=3, per_second=0.5, clock=clock)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 2.0
    assert [allowance.take() for _ in range(2)] == [True, False]
    clock.now += 1e6
    assert sum(allowance.take() for _ in range(10)) == 3


def test_an_honest_hello_passes() -> None:
    ids = [f"{number:032x}" for number in range(MOST_TOLD)]
    partial = [pb.Progress(message_id=each, received=1) for each in ids]
    check_hello(pb.Hello(versions=versions(), held=ids, busy=ids, partial=partial), "north")


@pytest.mark.parametrize(
    ("hello", "told"),
    [
        ({"held": ["a"] * (MOST_TOLD + 1)}, "1025 instructions"),
        ({"busy": ["a"] * (MOST_TOLD + 1)}, "1025 instructions"),
        ({"partial": [pb.Progress()] * (MOST_TOLD + 1)}, "1025 instructions"),
        ({"held": ["a" * 65]}, "65 characters"),
        ({"partial": [pb.Progress(message_id="a" * 65)]}, "65 characters"),
        ({"versions": {"a" * 65: ""}}, "65 characters"),
        ({"versions": {str(n): "1" for n in range(40)}}, "80 words"),
        ({"capabilities": ["a"] * 65}, "65 words"),
    ],
)
def test_a_hello_that_tells_too_much_is_refused(hello: dict[str, object], told: str) -> None:
    with pytest.raises(WireError, match=told):
        check_hello(pb.Hello(**hello), "north")  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-1.0, 1e-3, 301.0, math.inf, math.nan])
def test_a_heartbeat_that_never_comes_or_never_ends_is_refused(seconds: float) -> None:
    with pytest.raises(WireError, match="heartbeat_seconds"):
        heartbeat_of(pb.Welcome(heartbeat_seconds=seconds))
    assert heartbeat_of(pb.Welcome()) == 10.0


def test_a_farewell_is_cut_and_printable() -> None:
    error = error_of(pb.Goodbye(reason="policy", message="\x1b" * 9999, remedy="\n" * 9999))
    for text in (error.message, error.remedy):
        assert text.isprintable()
        assert len(text) == 1000

"""The pauses between attempts."""

from __future__ import annotations

import pytest
from hanse_client.link.patience import (
    FIRST_PAUSE_SECONDS,
    GOOD_STREAM_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Patience,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("hanse_client.link.patience.time.monotonic", lambda: now[0])
    monkeypatch.setattr("hanse_client.link.patience.time.time", lambda: now[0])
    return now


def test_pauses_grow_to_their_bound_with_jitter() -> None:
    patience = Patience()
    pauses = [patience.pause() for _ in range(100)]
    for number, pause in enumerate(pauses):
        longest = min(FIRST_PAUSE_SECONDS * 2 ** min(number, 16), LONGEST_PAUSE_SECONDS)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses[10:])) > 80


def test_a_good_stream_ends_a_series_of_failures(clock: list[float]) -> None:
    patience = Patience()
    for _ in range(8):
        patience.pause()
    patience.opened()
    clock[0] += GOOD_STREAM_SECONDS + 1
    patience.ended()
    assert patience.pause() <= FIRST_PAUSE_SECONDS


def test_a_stream_that_breaks_at_once_does_not(clock: list[float]) -> None:
    patience = Patience()
    for _ in range(8):
        patience.pause()
    patience.opened()
    patience.ended()
    assert patience.pause() > 10 * FIRST_PAUSE_SECONDS


def test_waiting_counts_from_the_end_of_the_last_stream(clock: list[float]) -> None:
    patience = Patience()
    assert patience.since == 1000
    clock[0] = 1010
    patience.ended()  # an attempt that failed
    assert patience.since == 1000
    patience.opened()
    clock[0] = 1100
    patience.ended()
    assert patience.since == 1100


def test_refusals_count_from_the_first_in_a_row(clock: list[float]) -> None:
    patience = Patience()
    assert patience.refused_for() == 0
    clock[0] += 30
    assert patience.refused_for() == 30
    patience.opened()
    assert patience.refused_for() == 0

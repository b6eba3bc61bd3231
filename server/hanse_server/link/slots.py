"""Room for replies on their way, and who has held it long enough."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

PROGRESS_SECONDS = 30.0
LEAST_PROGRESS = 64 * 1024
"""Bytes that a reply must advance by within that time: some 2 kB/s, or its site is sent away."""

LEAST_TURN_SECONDS = 60.0
"""Nobody is sent away for being slow before this, however many wait."""


class Slots:
    """How many replies of one exchange may be on their way, or here and not yet taken.

    The rest wait at their sites, so that the server's memory does not grow with their number. Small
    ones that come in their headers need none: of them there is an :class:`Allotment`.

    Args:
        most: how many at a time.
        until: when the app stops waiting for them, by the monotonic clock.

    Attributes:
        until: likewise.
        waiting: ids of the instructions whose replies wait, each once, the first first.
    """

    def __init__(self, most: float, until: float = math.inf) -> None:
        self._most = most
        self.until = until
        self.free = most
        self.waiting: dict[str, None] = {}

    def turn(self, now: float) -> float:
        """How long a reply may hold a slot while others wait: its share of the time left.

        So that everybody gets a turn before the deadline, whoever holds the slots.
        """
        share = self._most / (self._most + len(self.waiting)) if self.waiting else math.inf
        return max(LEAST_TURN_SECONDS, (self.until - now) * share)


class Allotment:
    """Bytes that replies may bring along in their headers, without a slot: so many for all.

    Args:
        most: bytes of all replies that are on their way, or here and not yet taken.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self._held: dict[str, int] = {}

    def allot(self, instruction: str, asked: int) -> int:
        """What the reply to an instruction gets of the bytes asked for; the rest needs a slot.

        It keeps what it has where the instruction is sent again.
        """
        if instruction not in self._held:
            self._held[instruction] = min(asked, self._left)
            self._left -= self._held[instruction]
        return self._held[instruction]

    def of(self, instruction: str) -> int:
        """What the reply to an instruction has got."""
        return self._held.get(instruction, 0)

    def give_back(self, instruction: str) -> None:
        """The reply is taken, or nobody waits for it any more."""
        self._left += self._held.pop(instruction, 0)


@dataclass
class Progress:
    """How a reply that holds a slot gets on; times by the monotonic clock."""

    since: float
    received: int
    at: float

    @staticmethod
    def begin(received: int) -> Progress:
        """Of a reply that has just got its slot."""
        now = time.monotonic()
        return Progress(since=now, received=received, at=now)

    def complaint(self, received: int, slots: Slots, now: float) -> str:
        """Why it is too slow to go on, in words; empty if it is not.

        Args:
            received: bytes that are there by now.
        """
        if received - self.received >= LEAST_PROGRESS:
            self.received, self.at = received, now
        if now - self.at > PROGRESS_SECONDS:
            return (
                f"a reply advanced by {received - self.received} bytes in {now - self.at:.0f} s, "
                f"the least is {LEAST_PROGRESS} in {PROGRESS_SECONDS:.0f} s"
            )
        held, turn = now - self.since, slots.turn(now)
        if slots.waiting and held > turn:
            return f"a reply took {held:.0f} s and others wait: its turn is {turn:.0f} s"
        return ""

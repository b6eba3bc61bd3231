"""How often a site tries, and when it stops trying."""

from __future__ import annotations

import random
import time

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
GOOD_STREAM_SECONDS = 5.0
"""A stream that lasted so long ends a series of failures."""


class Patience:
    """The pauses between attempts: exponential, with jitter so that the sites of a server that
    was restarted do not all come at once.

    Attributes:
        since: Unix time since which there is no stream.
    """

    def __init__(self) -> None:
        self.since = time.time()
        self._failures = 0
        self._refused_since: float | None = None
        self._opened_at: float | None = None

    def opened(self) -> None:
        """A stream is open."""
        self._opened_at = time.monotonic()
        self._refused_since = None

    def ended(self) -> None:
        """An attempt failed, or the stream ended."""
        if self._opened_at is not None:
            self.since = time.time()
            if time.monotonic() - self._opened_at > GOOD_STREAM_SECONDS:
                self._failures = 0
        self._opened_at = None

    def refused_for(self) -> float:
        """Seconds since the first of the refusals that came one after another."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        return now - self._refused_since

    def pause(self) -> float:
        """Seconds until the next attempt."""
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        return random.uniform(longest / 2, longest)  # noqa: S311  it hides nothing

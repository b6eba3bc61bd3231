"""How much of what is of no use a side puts up with."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """A bucket of ``most`` that fills up again by ``per_second``: for what happens now and then
    between honest ends, and without end at the hands of a hostile one.

    Args:
        clock: seconds, never going back.
    """

    def __init__(
        self, *, most: float, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = self._left = most
        self._per_second = per_second
        self._clock = clock
        self._at = clock()

    def take(self) -> bool:
        """Take one; False if there is none left."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

"""How many lines a site can bring about by coming and going."""

from __future__ import annotations

import time
from dataclasses import dataclass

MOST = 10
SECONDS = 60.0


@dataclass
class _Window:
    since: float
    told: int = 0
    untold: int = 0


class Pace:
    """Lets so many lines of a kind through each minute, and counts the rest.

    A site that is let in and goes away, or is turned away, time after time would else fill the
    disk of the server.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], _Window] = {}

    def untold(self, event: str, site: str) -> int | None:
        """How many lines went untold before this one; None if it is to go untold too."""
        now = time.monotonic()
        window = self._windows.setdefault((event, site), _Window(now))
        if now - window.since > SECONDS:
            window.since, window.told = now, 0
        if window.told >= MOST:
            window.untold += 1
            return None
        window.told += 1
        untold, window.untold = window.untold, 0
        return untold

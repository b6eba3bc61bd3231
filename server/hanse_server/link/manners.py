"""How sites have behaved, beyond the life of one stream, and what follows from it.

All of it is kept by the names of registered sites, so that it does not grow.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hanse.errors import WireError
from hanse.wire.allowance import Allowance

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
FORGIVEN_SECONDS = 300.0
"""So long after its last pause an offender counts as new."""

STREAMS_AT_ONCE, STREAMS_PER_SECOND = 30, 0.2
LINES_AT_ONCE, LINES_PER_SECOND = 20, 0.2


@dataclass
class _Offences:
    count: int = 0
    until: float = 0.0


class Manners:
    """Who may open a stream now: an offender waits before it comes back, ever longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._offences: dict[str, _Offences] = {}
        self._streams: dict[str, Allowance] = {}

    def offended(self, site: str) -> None:
        """A site was sent away for what it did."""
        now, of = self._clock(), self._offences.setdefault(site, _Offences())
        if now - of.until > FORGIVEN_SECONDS:
            of.count = 0
        of.until = now + min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**of.count)
        of.count = min(of.count + 1, 16)

    def let_in(self, site: str) -> None:
        """Count one more stream of a registered site.

        Raises:
            WireError: if it opens them too often, or was sent away and comes back too soon.
        """
        left = self._offences.get(site, _Offences()).until - self._clock()
        if left > 0:
            raise WireError(
                f"site {site!r} was sent away for what it did, and may come back in {left:.0f} s"
            )
        fresh = Allowance(most=STREAMS_AT_ONCE, per_second=STREAMS_PER_SECOND, clock=self._clock)
        if not self._streams.setdefault(site, fresh).take():
            raise WireError(
                f"site {site!r} opens streams too often: {STREAMS_AT_ONCE} at once, and one each "
                f"{1 / STREAMS_PER_SECOND:.0f} s, are the most"
            )


class Complaints:
    """Warnings that sites bring about: so many each at once, then one now and then.

    Args:
        log: where they go.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lines: dict[str, Allowance] = {}
        self._untold: Counter[str] = Counter()

    def tell(self, site: str, text: str) -> None:
        """Write a warning, or count it to the next one that is written.

        Args:
            site: a registered one; empty for all strangers together.
        """
        fresh = Allowance(most=LINES_AT_ONCE, per_second=LINES_PER_SECOND)
        if not self._lines.setdefault(site, fresh).take():
            self._untold[site] += 1
            return
        more = self._untold.pop(site, 0)
        told = f" (and {more} more like it, untold)" if more else ""
        self._log.warning("%s: %s%s", site or "a stranger", text, told)

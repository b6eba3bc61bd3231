"""The faults of a run: what is due, and what is under way."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable

from tests.faults.chaos.fault import SOON, Acting, Fault
from tests.faults.chaos.kinds import KINDS
from tests.faults.chaos.run import Run


class Suffering:
    """Faults as they befall a run: what is due, what is under way.

    Args:
        planned: the earliest first.
        injected: is told each fault that has come to its moment.
    """

    def __init__(self, run: Run, planned: Iterable[Fault], injected: list[Fault]) -> None:
        self._run = run
        self._waiting = list(planned)
        self._due: list[tuple[float, int, Fault, Acting]] = []
        self._begun = 0
        self._injected = injected

    def go_on(self) -> float:
        """Do what is due; seconds until there may be more to do."""
        now = time.monotonic()
        while self._waiting and self._run.round() >= self._waiting[0].round:
            self.begin(self._waiting.pop(0))
        while self._due and self._due[0][0] <= now:
            _, _, fault, acting = heapq.heappop(self._due)
            pause = next(acting, None)
            if pause != SOON and fault not in self._injected:
                self._injected.append(fault)
            if pause is not None:
                self._later(time.monotonic() + pause, fault, acting)
        left = self._due[0][0] - time.monotonic() if self._due else 0.01
        return min(0.01, max(left, 0.0))

    def begin(self, fault: Fault) -> None:
        """Let a fault begin, after its wait."""
        acting = KINDS[fault.kind](self._run, fault)
        self._later(time.monotonic() + fault.wait, fault, acting)

    def end(self) -> None:
        """Let what is under way be."""
        for *_, acting in self._due:
            acting.close()
        self._due.clear()

    def _later(self, when: float, fault: Fault, acting: Acting) -> None:
        self._begun += 1
        heapq.heappush(self._due, (when, self._begun, fault, acting))

"""The memory of all processes on a server's side, watched from outside while they work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LOOK_SECONDS, FAMILY_SECONDS = 0.01, 0.5
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Looks at a process and its descendants a hundred times a second.

    Pages that they share are counted once for each, which a few libraries are.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def at(self, moment: float) -> int:
        """Bytes in use at a moment, in Unix seconds."""
        return min(self._seen, key=lambda each: abs(each[0] - moment))[1]

    def peak(self, start: float, end: float) -> int:
        """The most bytes in use between two moments."""
        return max(used for when, used in self._seen if start <= when <= end)

    def _look_on(self) -> None:
        family, known_at = [self._pid], 0.0
        while not self._over.wait(LOOK_SECONDS):
            now = time.time()
            if now - known_at > FAMILY_SECONDS:
                family, known_at = list(_family(self._pid)), now
            self._seen.append((now, sum(_resident(pid) for pid in family)))


def _resident(pid: int) -> int:
    with suppress(OSError):  # it has ended
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _family(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found = [root]
    while found:
        pid = found.pop()
        yield pid
        found += children.get(pid, [])

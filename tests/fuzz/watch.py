"""Runs inputs one by one, and keeps what a target may not do: other errors, long work, memory."""

from __future__ import annotations

import hashlib
import resource
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hanse.errors import HanseError

from tests.fuzz.target import Target

SECONDS = 2.0
"""CPU time that an input may take."""

MEMORY = 512 << 20
"""Bytes that an input may take beyond what was taken before it."""

_PACKAGES = ("hanse/", "hanse_server/", "hanse_client/")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a target did that it may not.

    Attributes:
        kind: the type of the error, ``slow`` or ``memory``.
        where: the last line of the project's own code on the way there.
        text: of the error.
        data: the first input that showed it.
    """

    kind: str
    where: str
    text: str
    data: bytes

    @property
    def name(self) -> str:
        """A name for a file."""
        digest = hashlib.sha256(self.data).hexdigest()[:8]
        return f"{self.kind}-{self.where.replace('/', '.').replace(':', '-')}-{digest}"


class Watch:
    """Runs inputs of one target.

    Attributes:
        inputs: how many ran.
        refused: how many ended in a HanseError.
        findings: one for each kind and place.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.inputs = self.refused = 0
        self._found: dict[tuple[str, str], Finding] = {}
        self.peak = _resident()

    @property
    def findings(self) -> list[Finding]:
        """The first of each kind and place."""
        return list(self._found.values())

    def run(self, data: bytes) -> None:
        """Run one input."""
        self.inputs += 1
        started = time.process_time()
        try:
            self._target.run(data)
        except HanseError:
            self.refused += 1
        except MemoryError as error:
            self._keep("memory", _where(error), str(error), data)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is what is looked for
            self._keep(type(error).__name__, _where(error), str(error)[:200], data)
        took = time.process_time() - started
        if took > SECONDS:
            self._keep("slow", "", f"{took:.1f} s", data)
        peak = _resident()
        if peak - self.peak > MEMORY:
            self._keep("memory", "", f"{(peak - self.peak) >> 20} MiB more than before", data)
        self.peak = max(peak, self.peak)

    def _keep(self, kind: str, where: str, text: str, data: bytes) -> None:
        self._found.setdefault((kind, where), Finding(kind=kind, where=where, text=text, data=data))


def _where(error: BaseException) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for package in _PACKAGES:
            if f"/{package}" in frame.filename and "/site-packages/" not in frame.filename:
                return f"{package}{frame.filename.rpartition(f'/{package}')[2]}:{frame.lineno}"
    return "outside"


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let allocations fail that go far beyond what is taken now, whether used or not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    tighten_memory()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def tighten_memory() -> None:
    """Bound this process's memory to :data:`MEMORY` more than it has now."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    taken = next(line for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(taken.split()[1]) * 1024 + MEMORY, hard))

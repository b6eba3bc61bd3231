"""The memory of a process, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

_FROM_NOW_ON = "5"  # proc(5): resets the peak of the resident set


class OwnMemory:
    """This process's resident set: at rest, and at its highest in the rounds."""

    def __init__(self) -> None:
        self.rest = 0

    def rests(self) -> None:
        """All is there but the model."""
        self.rest = _status("VmRSS")

    def begins(self) -> None:
        """The first round begins: what was the highest before counts no more."""
        Path("/proc/self/clear_refs").write_text(_FROM_NOW_ON)

    @property
    def peak(self) -> int:
        """The highest since then, in bytes."""
        return _status("VmHWM")


def available_bytes() -> int:
    """What the machine has left, without swapping."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _status(field: str) -> int:
    return _kilobytes(Path("/proc/self/status"), field)


def _kilobytes(path: Path, field: str) -> int:
    """A field of one of the kernel's tables, in bytes."""
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024

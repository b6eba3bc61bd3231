"""What the server does at this moment and whom it waits for, in a file that anyone may read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from hanse.errors import WorkspaceError

from hanse_server.durable import write_file


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """A site whose reply is owed.

    Attributes:
        since, until: Unix time in seconds; ``until`` is the round's deadline.
    """

    site: str
    since: float
    until: float


@dataclass(frozen=True, kw_only=True)
class Status:
    """A moment of a run.

    Attributes:
        phase: ``waiting``, ``training``, ``evaluating``, ``checkpointing``, ``done`` or
            ``failed``.
        waiting_for: in words; empty when nothing is awaited.
    """

    phase: str
    round: int
    rounds: int
    connected: tuple[str, ...] = ()
    awaited: tuple[Awaited, ...] = ()
    waiting_for: str = ""
    updated_at: float = 0.0


class StatusFile:
    """Writes ``status.json``; not more often than ``every`` seconds unless the phase changes."""

    def __init__(self, folder: Path, *, every: float = 0.25) -> None:
        self._file = folder / "status.json"
        self._every = every
        self._last: tuple[str, int] = ("", 0)
        self._written_at = 0.0

    def show(self, status: Status) -> None:
        """Write ``status``, if it is news."""
        now = time.time()
        phase = (status.phase, status.round)
        if phase == self._last and now - self._written_at < self._every:
            return
        self._last, self._written_at = phase, now
        write_file(self._file, json.dumps(asdict(status) | {"updated_at": now}).encode())


def read_status(folder: Path) -> Status:
    """The last status written to a workspace.

    Raises:
        WorkspaceError: if there is none.
    """
    try:
        data = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as missing:
        raise WorkspaceError(
            f"{folder} has no status: no server has run on it",
            remedy="Name the --workspace of a run.",
        ) from missing
    awaited = tuple(Awaited(**each) for each in _dicts(data.pop("awaited")))
    return Status(**data | {"awaited": awaited, "connected": tuple(data["connected"])})


def _dicts(items: Iterable[object]) -> Iterable[dict[str, object]]:
    return (item for item in items if isinstance(item, dict))

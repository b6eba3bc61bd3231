"""What the server does at this moment and whom it waits for, in a file that anyone may read."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hanse.errors import WorkspaceError
from pydantic import TypeAdapter

from hanse_server.durable import unreadable


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """A site whose reply is owed.

    Attributes:
        since, until: Unix time in seconds; ``until`` is the round's deadline.
    """

    site: str
    since: float
    until: float


@dataclass(frozen=True)
class Refused:
    """The last reply of a site that did not count.

    Attributes:
        round: in which it came.
        reason: what was wrong with it.
    """

    site: str
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """A moment of a run.

    Attributes:
        phase: ``waiting``, ``training``, ``evaluating``, ``checkpointing``, ``done`` or
            ``failed``; in a secure round also ``agreeing_on_masks`` and ``sharing_masks`` before
            training, ``agreeing_on_survivors`` and ``unmasking`` after it.
        waiting_for: in words; empty when nothing is awaited.
        refused: sites whose reply was left out since the server started, each with the last.
    """

    phase: str
    round: int
    rounds: int
    connected: tuple[str, ...] = ()
    awaited: tuple[Awaited, ...] = ()
    waiting_for: str = ""
    refused: tuple[Refused, ...] = ()
    updated_at: float = 0.0


_STATUS = TypeAdapter(Status)


class StatusFile:
    """Keeps ``status.json`` at the latest status, without holding up who tells it.

    A thread writes at most every ``every`` seconds, and always the last word; so a thousand
    sites that answer at once cost a few writes, and a stall shows as it is.
    """

    def __init__(self, folder: Path, *, every: float = 0.1) -> None:
        self._file = folder / "status.json"
        self._every = every
        self._latest: Callable[[], Status] | None = None
        self._news = threading.Event()
        self._closed = threading.Event()
        self._writer = threading.Thread(target=self._write_news, name="status", daemon=True)

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._news.set()
        self._writer.join()
        self._write()

    def show(self, status: Status | Callable[[], Status]) -> None:
        """Have ``status`` written soon; a function is called, by the thread, when it is."""
        self._latest = status if callable(status) else lambda: status
        self._news.set()

    def _write_news(self) -> None:
        while not self._closed.is_set():
            self._news.wait()
            self._news.clear()
            started = time.monotonic()
            self._write()
            took = time.monotonic() - started
            self._closed.wait(max(self._every, 20 * took))  # of many sites it takes its time

    def _write(self) -> None:
        if self._latest is not None:
            told = asdict(self._latest()) | {"updated_at": time.time()}
            temporary = self._file.with_name(".status.json")
            with suppress(OSError):  # a full disk ends a run where something of worth is lost
                # Not fsynced: after a crash the status is of no worth.
                temporary.write_text(json.dumps(told), encoding="utf-8")
                temporary.replace(self._file)


def read_status(folder: Path) -> Status:
    """The last status written to a workspace.

    Raises:
        WorkspaceError: if there is none, or it is damaged.
    """
    try:
        text = (folder / "status.json").read_bytes()
    except OSError as missing:
        raise WorkspaceError(
            f"{folder} has no status: no server has run on it",
            remedy="Name the --workspace of a run.",
        ) from missing
    try:
        return _STATUS.validate_json(text, strict=True)
    except ValueError as damaged:
        raise unreadable(folder / "status.json", "it is damaged") from damaged


def clock(moment: float) -> str:
    """Unix time as people read it, with the day where it is another one."""
    if not math.isfinite(moment) or not moment:
        return "no limit"
    local = time.localtime(moment)
    today = time.localtime()[:3] == local[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", local)

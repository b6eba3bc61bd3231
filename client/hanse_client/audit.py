"""The audit trail: what was asked of a site and what left it, one line each, chained by hash."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanse.durable import sync_folder
from hanse.errors import LedgerBrokenError, LedgerError

GENESIS = "0" * 64


class AuditTrail:
    """Appends lines to a file; each holds the digest of the one before it.

    The lines name messages, sizes, digests, metrics and reasons; no record and no weight is in
    them.

    Args:
        path: of the file; None keeps nothing, for simulated sites.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _strike_torn_line(path)
            sync_folder(path.parent)
            self._last = last_digest(path)

    def read(self) -> list[dict[str, Any]]:
        """The lines so far, oldest first, each checked to follow from the one before it.

        Raises:
            LedgerBrokenError: naming the first line that does not.
        """
        return [] if self.path is None else read_chained(self.path)

    def write(self, event: str, **details: Any) -> None:
        """Add a line, durably.

        Raises:
            LedgerError: if it cannot be written; what was to be told must then not happen.
        """
        if self.path is None:
            return
        with self._lock:
            line = {"time": time.time(), "event": event, **details, "previous": self._last}
            text = json.dumps(line, sort_keys=True)
            try:
                _append(self.path, text.encode() + b"\n")
            except OSError as error:
                raise LedgerError(
                    f"the audit trail {self.path} cannot be written: {error.strerror}",
                    remedy="Make room on the disk; nothing was sent.",
                ) from error
            self._last = _digest(text)


def read_audit(path: Path) -> list[dict[str, Any]]:
    """The lines of a trail, oldest first; none where there is no file.

    Raises:
        LedgerBrokenError: if a line is not what :class:`AuditTrail` writes.
    """
    return [line for _, line in _parsed(path)]


def read_chained(path: Path) -> list[dict[str, Any]]:
    """The lines of a trail, oldest first, each checked to follow from the one before it.

    Raises:
        LedgerBrokenError: naming the first line that does not. Of a last line that was changed,
            and of lines removed after it, the chain knows nothing: compare :func:`last_digest`
            with one that was noted elsewhere.
    """
    lines, before = [], GENESIS
    for number, (text, line) in enumerate(_parsed(path), start=1):
        if line.get("previous") != before:
            raise LedgerBrokenError(
                f"{path}: line {number} does not follow from the one before it: the trail was "
                "changed, or a line was removed"
            )
        lines.append(line)
        before = _digest(text)
    return lines


def _append(path: Path, line: bytes) -> None:
    """Add a line whole, or not at all."""
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _strike_torn_line(path: Path) -> None:
    """Cut off a last line that a crash left half-written: what it was to tell did not happen."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # who else writes has then written whole lines
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def last_digest(path: Path) -> str:
    """The digest of the last line, in which all lines before it have a part."""
    last = GENESIS
    for text in _lines(path):
        last = _digest(text)
    return last


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            # A line without its end is being written at this moment, or was cut off by a crash.
            yield from (line.removesuffix("\n") for line in file if line.endswith("\n"))


def _parsed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, text in enumerate(_lines(path), start=1):
        try:
            yield text, dict(json.loads(text))
        except (ValueError, TypeError) as spoiled:
            raise LedgerBrokenError(f"{path}: line {number} is damaged") from spoiled


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""An audit trail: a file that can only be added to, one line an event, chained by hash.

Each line is a JSON object with its ``time`` (Unix, in seconds), its ``event`` and the digest of the
line before it, ``previous``; the first follows from :data:`GENESIS`. So no line can be changed,
removed or moved without all after it being made anew, and who has noted the digest of the last
line elsewhere (:func:`last_digest`) sees that too. What the lines tell is each side's own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from hanse.durable import sync_folder
from hanse.errors import HanseError
from hanse.parsing import parse_json

GENESIS = "0" * 64

_BLOCK = 1 << 16


class Trail:
    """Appends lines to a file; each holds the digest of the one before it.

    :meth:`write` is durable when it returns. :meth:`note` only remembers a line: the next
    :meth:`write` or :meth:`flush` writes it, before its own and with the same fsync, so that a
    thousand lines cost no more than one. Safe to use from several threads; noting waits for no
    disk.

    Args:
        path: of the file; None keeps nothing.
    """

    broken: ClassVar[type[HanseError]] = HanseError
    """What is raised of a trail that is not what it was written as."""

    unwritable: ClassVar[type[HanseError]] = HanseError
    """What is raised where it cannot be written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._noting, self._writing = threading.Lock(), threading.Lock()
        self._noted: list[dict[str, Any]] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _strike_torn_line(path)
            sync_folder(path.parent)
            self._last = last_digest(path)

    @property
    def is_written(self) -> bool:
        """Whether there is a file, so that what is told is worth making."""
        return self.path is not None

    def read(self) -> list[dict[str, Any]]:
        """The lines so far, oldest first, each checked to follow from the one before it.

        Raises:
            HanseError: of the kind ``broken``, naming the first line that does not.
        """
        return [] if self.path is None else list(chained_lines(self.path, self.broken))

    def note(self, event: str, **details: Any) -> None:
        """Remember a line, to be written with the next one."""
        if self.path is not None:
            with self._noting:
                self._noted.append(_entry(event, details))

    def write(self, event: str, **details: Any) -> None:
        """Add a line, durably, after those that were noted.

        Raises:
            HanseError: of the kind ``unwritable``; what was to be told must then not happen.
        """
        if self.path is not None:
            with self._writing:
                self._append(self.path, [_entry(event, details)])

    def flush(self) -> None:
        """Write what was noted, durably.

        Raises:
            HanseError: of the kind ``unwritable``; the lines stay noted.
        """
        if self.path is not None:
            with self._writing:
                self._append(self.path, [])

    def _append(self, path: Path, more: list[dict[str, Any]]) -> None:
        with self._noting:
            noted, self._noted = self._noted, []
        last, texts = self._last, []
        for entry in (*noted, *more):
            texts.append(json.dumps(entry | {"previous": last}, sort_keys=True))
            last = digest_of(texts[-1])
        if not texts:
            return
        try:
            _append_whole(path, "".join(f"{text}\n" for text in texts).encode())
        except OSError as error:
            with self._noting:
                self._noted = noted + self._noted
            raise self.unwritable(
                f"the audit trail {path} cannot be written: {error.strerror}",
                remedy="Make room on the disk; nothing was sent.",
            ) from error
        self._last = last


def trail_lines(path: Path, broken: type[HanseError]) -> Iterator[dict[str, Any]]:
    """The lines of a trail, oldest first; none where there is no file.

    Raises:
        HanseError: of the kind ``broken``, if a line is not what :class:`Trail` writes.
    """
    return (line for _, line in _parsed(path, broken))


def chained_lines(path: Path, broken: type[HanseError]) -> Iterator[dict[str, Any]]:
    """The lines of a trail, oldest first, each checked to follow from the one before it.

    Raises:
        HanseError: of the kind ``broken``, naming the first line that does not. Of a last line
            that was changed, and of lines removed after it, the chain knows nothing: compare
            :func:`last_digest` with one that was noted elsewhere.
    """
    before = GENESIS
    for number, (text, line) in enumerate(_parsed(path, broken), start=1):
        if line.get("previous") != before:
            raise broken(
                f"{path}: line {number} does not follow from the one before it: the trail was "
                "changed, or a line was removed"
            )
        yield line
        before = digest_of(text)


def last_digest(path: Path) -> str:
    """The digest of the last line, in which all lines before it have a part."""
    if not path.exists():
        return GENESIS
    with path.open("rb") as file:
        whole = _end_of_lines(file, file.seek(0, os.SEEK_END))
        if whole == 0:
            return GENESIS
        start = _end_of_lines(file, whole - 1)
        file.seek(start)
        return hashlib.sha256(file.read(whole - 1 - start)).hexdigest()


def digest_of(text: str) -> str:
    """The digest of a line, without its end."""
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(event: str, details: dict[str, Any]) -> dict[str, Any]:
    return {"time": time.time(), "event": event, **details}


def _append_whole(path: Path, lines: bytes) -> None:
    """Add lines whole, or not at all."""
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.tell()
        try:
            left: Sequence[int] = memoryview(lines)
            while left:
                left = left[file.write(left) :]  # type: ignore[arg-type]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _strike_torn_line(path: Path) -> None:
    """Cut off a last line that a crash left half-written: what it was to tell did not happen."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # who else writes has then written whole lines
        file.truncate(_end_of_lines(file, file.seek(0, os.SEEK_END)))


def _end_of_lines(file: IO[bytes], end: int) -> int:
    """Where the last whole line before byte ``end`` ends; 0 without any."""
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _parsed(path: Path, broken: type[HanseError]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, text in enumerate(_texts(path, broken), start=1):
        try:
            yield text, dict(parse_json(text))
        except (ValueError, TypeError) as spoiled:
            raise broken(f"{path}: line {number} is damaged") from spoiled


def _texts(path: Path, broken: type[HanseError]) -> Iterator[str]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as file:
        try:
            # A line without its end is being written at this moment, or was cut off by a crash.
            yield from (line.removesuffix("\n") for line in file if line.endswith("\n"))
        except UnicodeDecodeError as spoiled:
            raise broken(f"{path} is damaged: it is no text") from spoiled

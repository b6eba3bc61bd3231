"""The bytes of a message that arrives: in memory, or in a file where they are many."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hanse.errors import WorkspaceError
from hanse.parts import Data, Part

IN_MEMORY = 4 << 20
"""Bytes of a body up to which it stays in memory, even where there is a spool."""

MOST_SPARE = 8
"""Files that a spool keeps for the bodies to come."""


class Spool:
    """Files for bodies that are not small. They have no names, and end with the process.

    A body that is no more leaves its file to the next: its room on the disk and in the kernel's
    cache is there already, which a new file has to be given page by page.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spare: list[int] = []
        weakref.finalize(self, _close, self._spare)

    def take(self) -> int:
        """The descriptor of a file, with whatever has been written to it before.

        Raises:
            WorkspaceError: if there can be none.
        """
        with suppress(IndexError):
            return self._spare.pop()
        try:
            file, name = tempfile.mkstemp(dir=self._folder)
            Path(name).unlink()
        except OSError as error:
            raise _full(self._folder, error) from error
        return file

    def give_back(self, file: int) -> None:
        """Nobody looks at this file any more."""
        if len(self._spare) < MOST_SPARE:
            self._spare.append(file)
        else:
            os.close(file)


class Body:
    """A body that grows piece by piece; memory or disk is taken as bytes arrive.

    Args:
        size: that it will have.
        spool: for bodies that are not small, so that memory does not grow with them; None to keep
            every body in memory.
    """

    def __init__(self, size: int, spool: Spool | None = None) -> None:
        self._memory = bytearray()
        self._file: int | None = None
        if spool is not None and size > IN_MEMORY:
            self._file = spool.take()
            weakref.finalize(self, spool.give_back, self._file)

    def add(self, offset: int, data: Data) -> None:
        """Keep the piece that begins at ``offset``, the end of what is there.

        Raises:
            WorkspaceError: if there is no room for it.
        """
        if self._file is None:
            self._memory += data
            return
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._file, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise _full(Path("the spool"), error) from error

    def part(self, start: int, size: int) -> Part:
        """Bytes of it, once it is there; what is written to them stays in this process."""
        if self._file is None or size == 0:
            return memoryview(self._memory)[start : start + size]
        return _InFile(self, self._file, start, size)


@dataclass(frozen=True)
class _InFile:
    """A part of a body that lies in a file: as long as it is there, the body has its file."""

    body: Body
    file: int
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def mapped(self) -> memoryview:
        ahead = self.start % mmap.ALLOCATIONGRANULARITY
        mapped = _Mapped(
            self.file, ahead + self.size, access=mmap.ACCESS_COPY, offset=self.start - ahead
        )
        mapped.body = self.body
        return memoryview(mapped)[ahead:]

    def read_into(self, start: int, into: memoryview) -> None:
        at = self.start + start
        try:
            while into and (count := os.preadv(self.file, (into,), at)):
                into, at = into[count:], at + count
        except OSError as error:
            raise WorkspaceError(f"the spool: it cannot be read: {error.strerror}") from error
        if into:
            raise WorkspaceError(f"the spool: a file ends at byte {at}, before the reply does")


class _Mapped(mmap.mmap):
    """Memory of a file, which must not be another body's while anybody looks at it."""

    body: Body


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def _full(where: Path, error: OSError) -> WorkspaceError:
    return WorkspaceError(
        f"{where}: a reply cannot be kept there: {error.strerror}",
        remedy="Make room on the disk of the workspace: the site will send it again.",
    )

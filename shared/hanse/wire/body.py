"""The bytes of a message that arrives: in memory, or in a file where they are many."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from functools import partial
from pathlib import Path

from hanse.arrays import Data, Part
from hanse.errors import WorkspaceError

IN_MEMORY = 4 << 20
"""Bytes of a body up to which it stays in memory, even where there is a spool."""


class Body:
    """A body that grows piece by piece; memory or disk is taken as bytes arrive.

    Args:
        size: that it will have.
        spool: a folder for bodies that are not small, so that memory does not grow with them;
            None to keep every body in memory. The file has no name, and ends with the process.
    """

    def __init__(self, size: int, spool: Path | None = None) -> None:
        self._memory = bytearray()
        self._file: int | None = None
        if spool is not None and size > IN_MEMORY:
            self._file = _nameless(spool)
            weakref.finalize(self, os.close, self._file)

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
        """Bytes of it, once it is there; what is written to them stays in this process.

        Those that lie in the file are mapped anew whenever they are asked for, so that nothing of
        them is in memory but what is looked at.
        """
        if self._file is None or size == 0:
            return memoryview(self._memory)[start : start + size]
        return partial(self._mapped, self._file, start, size)

    def _mapped(self, file: int, start: int, size: int) -> memoryview:
        ahead = start % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(file, ahead + size, access=mmap.ACCESS_COPY, offset=start - ahead)
        return memoryview(mapped)[ahead:]


def _nameless(spool: Path) -> int:
    """The descriptor of a new file that nobody else can find."""
    try:
        file, name = tempfile.mkstemp(dir=spool)
        Path(name).unlink()
    except OSError as error:
        raise _full(spool, error) from error
    return file


def _full(where: Path, error: OSError) -> WorkspaceError:
    return WorkspaceError(
        f"{where}: a reply cannot be kept there: {error.strerror}",
        remedy="Make room on the disk of the workspace: the site will send it again.",
    )

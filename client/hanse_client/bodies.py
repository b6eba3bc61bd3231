"""The bodies of replies that are not small, each in a file of its own beside the outbox."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from hanse.durable import sync_folder
from hanse.errors import OutboxError
from hanse.parts import Data
from hanse.wire.message import CHUNK_BYTES


class Bodies:
    """A folder of files under names of their own; the outbox knows which of them count.

    One that counts no more is kept beside the folder for the next body: its room on the disk and
    in the kernel's cache is there already, which a new file has to be given page by page.

    Args:
        outbox: the file of the outbox.
    """

    def __init__(self, outbox: Path) -> None:
        self._folder = outbox.with_suffix(".bodies")
        self._spare = outbox.with_suffix(".spare")
        self._removing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hanse-outbox")
        self._removed: Future[None] | None = None

    def write(self, body: Sequence[Data]) -> str:
        """Write a body durably; the name that it has from now on.

        Raises:
            OSError: if there is no room for it; then nothing of it stays.
        """
        self._wait()  # for the room of those that go
        self._folder.mkdir(exist_ok=True)
        name = uuid.uuid4().hex
        path = self._folder / name
        try:
            with suppress(FileNotFoundError):
                self._spare.rename(path)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT), "wb", buffering=0) as file:
                file.truncate(min(file.seek(0, os.SEEK_END), sum(map(len, body))))
                file.seek(0)
                for part in body:
                    _write_all(file.fileno(), memoryview(part))
                os.fsync(file.fileno())
            sync_folder(self._folder)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return name

    def read(self, name: str, offset: int) -> bytes:
        """At most 1 MiB from ``offset`` on; empty at its end.

        Raises:
            OutboxError: if the file is gone.
        """
        try:
            with self._path(name).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), CHUNK_BYTES, offset)
        except FileNotFoundError as gone:
            raise OutboxError(f"{self._path(name)}: the body of a reply is gone") from gone

    def parts(self, name: str) -> Iterator[bytes]:
        """The whole of it, piece by piece."""
        offset = 0
        while data := self.read(name, offset):
            yield data
            offset += len(data)

    def remove(self, names: Iterable[str]) -> None:
        """Free the room of those that count no more, but for one of them."""
        for path in map(self._path, names):
            if self._spare.exists():
                path.unlink(missing_ok=True)
            else:
                with suppress(FileNotFoundError):
                    path.rename(self._spare)

    def remove_soon(self, names: Collection[str]) -> None:
        """The same on a thread, as a gigabyte takes its time; what fails, the next write tells."""
        if names:
            self._wait()
            self._removed = self._removing.submit(self.remove, names)

    def close(self) -> None:
        """Wait until what is to go is gone."""
        self._removing.shutdown()
        self._spare.unlink(missing_ok=True)

    def _wait(self) -> None:
        removed, self._removed = self._removed, None
        if removed is not None:
            removed.result()

    def keep_only(self, names: Collection[str]) -> None:
        """Remove what a crash has left: bodies that were not yet, or no more, in the outbox."""
        if self._folder.exists():
            self.remove(each.name for each in self._folder.iterdir() if each.name not in names)

    def _path(self, name: str) -> Path:
        if name != Path(name).name:
            raise OutboxError(f"{self._folder}: {name!r} is no name of a body")
        return self._folder / name


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

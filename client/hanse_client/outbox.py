"""The outbox: replies that the server may ask for again, on disk until it has settled them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from hanse.digests import BodyHash
from hanse.durable import DAMAGE
from hanse.errors import OutboxError
from hanse.parts import Data
from hanse.wire import hanse_pb2 as pb
from hanse.wire.content import descriptors

from hanse_client.bodies import Bodies

T = TypeVar("T")

SMALL_BYTES = 64 << 10
"""Bytes of a body up to which it lies in the database: a larger one is written faster as a file."""

SETTLED_KEPT = 10_000
"""Settled instructions whose ids are remembered, the newest."""


@dataclass(frozen=True)
class Held:
    """A reply in an outbox: its header, and digest and size of its body.

    Attributes:
        blake3: of its arrays, as :mod:`hanse.digests` has it.
    """

    instruction: str
    header: bytes
    blake3: str
    bytes: int


class Outbox:
    """An SQLite file of replies by the id of their instruction; safe to use from many threads.

    A reply is a header and a body. A body that is not small lies in a file of its own beside it,
    so that it is written once: SQLite would write it into its log, and from there again.

    Raises:
        OutboxError: if the file cannot be read or written, here and in every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bodies = Bodies(path)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        with self._errors():
            self._writer = _connect(path)
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.executescript(_SCHEMA)
            # Another connection, so that who reads never waits for a large reply to be written.
            self._reader = _connect(path)
            self._bodies.keep_only(self._files("SELECT file FROM reply WHERE file IS NOT NULL"))

    def put(self, instruction: str, header: bytes, body: Sequence[Data]) -> None:
        """Keep a reply durably, in place of any other to the same instruction.

        Args:
            body: its bytes, in parts.
        """
        with self._writing, self._errors():
            file, small = None, b""
            if sum(map(len, body)) > SMALL_BYTES:
                file = self._bodies.write(body)
            else:
                small = b"".join(body)
            before = self._files("SELECT file FROM reply WHERE instruction = ?", instruction)
            with _transaction(self._writer):
                row = (instruction, header, time.time(), file, small)
                self._writer.execute("INSERT OR REPLACE INTO reply VALUES (?, ?, ?, ?, ?)", row)
            self._bodies.remove(before)

    def header(self, instruction: str) -> bytes | None:
        """The header of a reply; None if there is none."""
        query = "SELECT header FROM reply WHERE instruction = ?"
        row = self._row(query, (instruction,))
        return None if row is None else _held(self._path, row[0], bytes)

    def piece(self, instruction: str, offset: int) -> bytes:
        """At most 1 MiB of a reply's body from ``offset`` on; empty at its end."""
        row = self._row("SELECT file, small FROM reply WHERE instruction = ?", (instruction,))
        if row is None:
            return b""
        if row[0] is None:
            return _held(self._path, row[1], bytes)[offset:]
        with self._errors():
            return self._bodies.read(_held(self._path, row[0], str), offset)

    def instructions(self) -> list[str]:
        """The instructions whose replies are here, the oldest first."""
        with self._reading, self._errors():
            rows = self._reader.execute("SELECT instruction FROM reply ORDER BY put_at").fetchall()
        return [_held(self._path, row[0], str) for row in rows]

    def forget(self, instructions: Iterable[str]) -> None:
        """Drop replies, and remember that they were settled; what is not here is passed over.

        Durably where files go. Small replies may be back after a power loss: nobody is the worse
        for it, and the server settles them again.
        """
        each, now = [(instruction,) for instruction in instructions], time.time()
        query = "SELECT file FROM reply WHERE instruction = ?"
        with self._writing, self._errors():
            files = [file for (instruction,) in each for file in self._files(query, instruction)]
            with _transaction(self._writer, durable=bool(files)):
                self._writer.executemany(
                    "INSERT OR REPLACE INTO settled SELECT instruction, ? FROM reply"
                    " WHERE instruction = ?",
                    [(now, *key) for key in each],
                )
                self._writer.executemany("DELETE FROM reply WHERE instruction = ?", each)
                self._writer.execute(
                    "DELETE FROM settled WHERE instruction IN (SELECT instruction FROM settled"
                    " ORDER BY settled_at DESC LIMIT -1 OFFSET ?)",
                    (SETTLED_KEPT,),
                )
            self._bodies.remove_soon(files)

    def was_settled(self, instruction: str) -> bool:
        """Whether there was a reply to an instruction, and the server has settled it."""
        query = "SELECT 1 FROM settled WHERE instruction = ?"
        return self._row(query, (instruction,)) is not None

    def close(self) -> None:
        """Close the file."""
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()
            self._bodies.close()

    def _files(self, query: str, *parameters: str) -> list[str]:
        rows = self._writer.execute(query, parameters).fetchall()
        return [_held(self._path, file, str) for (file,) in rows if file is not None]

    def _row(self, query: str, parameters: tuple[object, ...]) -> tuple[Any, ...] | None:
        with self._reading, self._errors():
            row: tuple[Any, ...] | None = self._reader.execute(query, parameters).fetchone()
        return row

    @staticmethod
    def look_into(path: Path) -> Iterator[Held]:
        """What lies in an outbox that a client may have open at this moment; the oldest first.

        Raises:
            OutboxError: if it cannot be read.
        """
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                db.execute("BEGIN")  # one moment for all that follows
                bodies = Bodies(path)
                replies = db.execute("SELECT * FROM reply ORDER BY put_at")
                for instruction, header, _, file, small in replies:
                    header = _held(path, header, bytes)
                    hashed, size = BodyHash(_sizes(header)), 0
                    parts = [small] if file is None else bodies.parts(_held(path, file, str))
                    for data in parts:
                        hashed.update(_held(path, data, bytes))
                        size += len(data)
                    yield Held(_held(path, instruction, str), header, hashed.digest().hex(), size)
        except (*DAMAGE, OSError) as error:
            raise OutboxError(f"{path}: {error}") from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (*DAMAGE, OSError) as error:
            raise OutboxError(f"{self._path}: {error}") from error


def _sizes(header: bytes) -> list[int]:
    """Bytes of each array of a reply; none of one whose header cannot be read."""
    with suppress(DecodeError):
        content = pb.Content.FromString(pb.Header.FromString(header).content)
        return [array.size for array in descriptors(content)]
    return []


_SCHEMA = """
CREATE TABLE IF NOT EXISTS reply (
    instruction TEXT PRIMARY KEY, header BLOB NOT NULL, put_at REAL NOT NULL,
    file TEXT, small BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS settled (instruction TEXT PRIMARY KEY, settled_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS settled_by_time ON settled (settled_at);
"""


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


@contextmanager
def _transaction(db: sqlite3.Connection, *, durable: bool = True) -> Iterator[None]:
    db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _held(path: Path, value: Any, kind: type[T]) -> T:
    """A value of the file, in which SQLite lets any type stand anywhere."""
    if not isinstance(value, kind):
        raise OutboxError(
            f"{path}: it is damaged: {type(value).__name__} for {kind.__name__}",
            remedy="Stop the client and move the file away: the replies in it are lost.",
        )
    return value

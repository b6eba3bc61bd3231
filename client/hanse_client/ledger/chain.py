"""The file of a ledger: rows in an SQLite table, each with a digest of all up to it.

Rows are added and never changed; triggers hold an honest hand to that, and the digests show
what a dishonest one did. Whoever can write the file can also compute the digests anew: against
that, each of them is told in the audit trail as well (:mod:`hanse_client.ledger.anchors`), whose
last line the administrator can note elsewhere.

Every opening checks every row. A mark of how far the rows were checked before would lie in reach
of the same hand, and would save little: 100,000 rows, years of rounds, take 2.5 s to open, with
their lines in the audit trail.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hanse.durable import DAMAGE, sync_folder
from hanse.errors import LedgerBrokenError, LedgerError

GENESIS = "0" * 64
"""What the first row follows."""

VERSION = 2
"""Of the table."""

_SCHEMA = """
BEGIN;
CREATE TABLE events (
    row INTEGER PRIMARY KEY, -- 1, 2, 3, ...
    content TEXT NOT NULL,
    digest TEXT NOT NULL -- SHA-256 over the digest of the row before, and the content
) STRICT;
CREATE TRIGGER only_at_the_end BEFORE INSERT ON events
WHEN NEW.row IS NOT (SELECT COALESCE(MAX(row), 0) + 1 FROM events)
BEGIN SELECT RAISE(ABORT, 'rows are added at the end of a ledger'); END;
CREATE TRIGGER never_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'rows of a ledger are never changed'); END;
CREATE TRIGGER never_removed BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'rows of a ledger are never removed'); END;
PRAGMA user_version = 2;
COMMIT;
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the chain.

    Attributes:
        number: counted from 1.
        digest: SHA-256, 64 hex digits; all rows up to this one have a part in it.
    """

    number: int
    content: str
    digest: str


class Chain:
    """An open file of rows; safe to use from several threads.

    Args:
        path: of the file; None for one in memory.
        read_only: whether it must exist and stays as it is. A client may be writing meanwhile.

    Raises:
        LedgerError: if it cannot be read or written, here and in every method.
        LedgerBrokenError: if it is no database, or a damaged one, likewise.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self.name = "ledger in memory" if path is None else str(path)
        self._mutex = threading.RLock()
        self._last = Row(number=0, content="", digest=GENESIS)
        uri = "file::memory:" if path is None else path.absolute().as_uri()
        with self._checked():
            # Autocommit: each statement is a transaction of its own, durable when it returns.
            self._database = sqlite3.connect(
                uri + "?mode=ro" * read_only,
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            self._prepare(create=not read_only)
            if path is not None:
                sync_folder(path.parent)  # a ledger that vanished would count from nothing
        except LedgerError:
            self.close()
            raise

    def _prepare(self, *, create: bool) -> None:
        with self._checked():
            if create:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute("PRAGMA cache_size = -256")  # KiB; rows are only added
                if self._version() == 0:
                    self._database.executescript(_SCHEMA)
            if self._version() == 0:
                raise LedgerError(
                    f"{self.name}: nothing was written in it",
                    remedy="Start the client: it begins the ledger.",
                )
            if self._version() != VERSION:
                raise LedgerError(
                    f"{self.name}: the ledger is of version {self._version()}, this is version "
                    f"{VERSION}",
                    remedy="Install the version of hanse that wrote it.",
                )

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """One thread at a time, and SQLite's errors as this project's."""
        with self._mutex:
            try:
                yield
            except sqlite3.OperationalError as failure:
                raise LedgerError(f"{self.name}: {failure}") from failure
            except DAMAGE as damage:
                raise LedgerBrokenError(f"{self.name}: {damage}") from damage

    def close(self) -> None:
        """Close the file."""
        with self._checked():
            self._database.close()

    def rows(self) -> list[Row]:
        """All rows, checked: they are numbered from 1 without a gap, each follows the one before.

        Raises:
            LedgerBrokenError: naming the first row of which that is not so.
        """
        query = "SELECT row, content, digest FROM events ORDER BY row"
        with self._checked():
            found = self._database.execute(query).fetchall()
        rows, before = [], GENESIS
        for expected, (number, content, digest) in enumerate(found, start=1):
            if number != expected or digest != row_digest(before, content):
                raise LedgerBrokenError(
                    f"{self.name}: row {expected} does not follow from the one before it"
                )
            rows.append(Row(number=number, content=content, digest=digest))
            before = digest
        if rows:
            self._last = rows[-1]
        return rows

    def count(self) -> int:
        """How many rows there are."""
        with self._checked():
            return int(self._database.execute("SELECT COUNT(*) FROM events").fetchone()[0])

    def append(self, content: str) -> Row:
        """Add a row, durably when this returns; to be called after :meth:`rows`.

        Raises:
            LedgerBrokenError: if the last row is not the one that was last read or written here.
        """
        row = Row(
            number=self._last.number + 1,
            content=content,
            digest=row_digest(self._last.digest, content),
        )
        with self._checked():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._check_last()
                values = (row.number, row.content, row.digest)
                self._database.execute("INSERT INTO events VALUES (?, ?, ?)", values)
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
        self._last = row
        return row

    def _check_last(self) -> None:
        query = "SELECT row, digest FROM events ORDER BY row DESC LIMIT 1"
        last = self._database.execute(query).fetchone() or (0, GENESIS)
        if last != (self._last.number, self._last.digest):
            raise LedgerBrokenError(
                f"{self.name}: the last row is no longer row {self._last.number} as it was written"
            )


def row_digest(before: str, content: str) -> str:
    """The digest of a row, from that of the row before it."""
    return hashlib.sha256(before.encode() + content.encode()).hexdigest()

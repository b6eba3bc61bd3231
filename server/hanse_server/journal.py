"""The journal: which instruction is owed a reply, which was answered, and which is done with.

It holds no content. After a restart the round loop pushes its round again, under the same ids;
what the journal adds is which replies the sites need no longer keep.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hanse.durable import DAMAGE
from hanse.errors import WorkspaceError

KEEP_SECONDS = 7 * 24 * 3600.0
"""How long a settled instruction is remembered. One that is not known counts as settled."""


class State(StrEnum):
    """How far an instruction is.

    ``owed``: no reply yet. ``received``: the reply was handed to the app, which may yet lose it
    in a crash. ``abandoned``: the app went on without it. ``settled``: nobody will ask again.
    """

    OWED = "owed"
    RECEIVED = "received"
    ABANDONED = "abandoned"
    SETTLED = "settled"


_OPEN = tuple(state for state in State if state is not State.SETTLED)
_UNSETTLED = "SELECT * FROM instruction WHERE state IN (?, ?, ?) ORDER BY since, id"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An instruction in the journal.

    Attributes:
        since: Unix time at which it came into its state.
    """

    instruction: str
    run_id: int
    site: str
    message_type: str
    group_id: str
    state: State = State.OWED
    since: float = 0.0


class Journal:
    """An SQLite file; safe to use from several threads of one process.

    Raises:
        WorkspaceError: if the file cannot be read or written, here and in every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA cache_size = -256")  # KiB; else the whole file, up to 2 MiB
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS instruction (id TEXT PRIMARY KEY, run_id TEXT NOT NULL,"
                " site TEXT NOT NULL, message_type TEXT NOT NULL, group_id TEXT NOT NULL,"
                " state TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID"
            )
            # What is settled is kept for days: neither a round nor a start may look through it.
            self._db.execute("CREATE INDEX IF NOT EXISTS by_state ON instruction (state, since)")

    def owe(self, entries: Iterable[Entry]) -> None:
        """Note durably that these are owed a reply, whatever was known of them before."""
        now = time.time()
        rows = [
            (e.instruction, str(e.run_id), e.site, e.message_type, e.group_id, State.OWED, now)
            for e in entries
        ]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO instruction VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def mark(self, instructions: Collection[str], state: State) -> None:
        """Put instructions into a state.

        Durably, but for ``received``: that is written at once, and waits for no disk, since who
        forgets it in a power loss asks again for what the site still holds.
        """
        now = time.time()
        with self._transaction(durable=state is not State.RECEIVED) as db:
            db.executemany(
                "UPDATE instruction SET state = ?, since = ? WHERE id = ?",
                [(state, now, each) for each in instructions],
            )

    def settle(
        self, *, keep: Collection[str] = (), only: Collection[str] | None = None
    ) -> list[Entry]:
        """Settle all that is not in ``keep``, and return what was not settled before.

        Args:
            only: settle nothing but what is in it; None for all.
        """
        now = time.time()
        with self._transaction() as db:
            rows = [
                row
                for row in db.execute(_UNSETTLED, _OPEN)
                if row[0] not in keep and (only is None or row[0] in only)
            ]
            db.executemany(
                "UPDATE instruction SET state = ?, since = ? WHERE id = ?",
                [(State.SETTLED, now, row[0]) for row in rows],
            )
            db.execute(
                "DELETE FROM instruction WHERE state = ? AND since < ?",
                (State.SETTLED, now - KEEP_SECONDS),
            )
            return [_entry(row) for row in rows]

    def state(self, instruction: str) -> State:
        """How far an instruction is; ``settled`` where it is not known."""
        query = "SELECT state FROM instruction WHERE id = ?"
        with self._lock, self._errors():
            row = self._db.execute(query, (instruction,)).fetchone()
            return State.SETTLED if row is None else State(row[0])

    def entry(self, instruction: str) -> Entry | None:
        """What is known of an instruction; None if nothing is."""
        query = "SELECT * FROM instruction WHERE id = ?"
        with self._lock, self._errors():
            row = self._db.execute(query, (instruction,)).fetchone()
            return None if row is None else _entry(row)

    def unsettled(self) -> list[Entry]:
        """All that is not settled, the oldest first."""
        with self._lock, self._errors():
            return [_entry(row) for row in self._db.execute(_UNSETTLED, _OPEN)]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (*DAMAGE, ValueError, TypeError, IndexError) as error:  # or rows that are none
            raise WorkspaceError(
                f"{self._path}: the journal cannot be used: {error}",
                remedy="Make room on the disk and check the permissions of the workspace.",
            ) from error


def _entry(row: tuple[str, str, str, str, str, str, float]) -> Entry:
    return Entry(
        instruction=row[0],
        run_id=int(row[1]),
        site=row[2],
        message_type=row[3],
        group_id=row[4],
        state=State(row[5]),
        since=row[6],
    )

"""The privacy ledger of a site: what was spent on each of its data sets, durably.

It holds events (noise multiplier, sampling rate, steps), never epsilons: what they cost together
is computed anew each time, over all rounds, runs and jobs. An entry is written before the first
batch is drawn and counts from then on for ever. It is ``reserved`` until :meth:`Ledger.release`,
which comes before anything that training made may leave, and ``released`` afterwards. So a crash
can make the ledger count an entry whose result never left, and can never make it miss one whose
result did.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from hanse.errors import BudgetError, LedgerError
from hanse.privacy.accounting import Charge, Verdict, decide, epsilon

from hanse_client.site import Budget

_VERSION = 1

_SCHEMA = f"""
BEGIN;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint TEXT NOT NULL,
    message_id TEXT NOT NULL,
    run_id TEXT NOT NULL, -- unsigned 64 bits, which SQLite's integers are not
    server_round INTEGER NOT NULL,
    job_digest TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sampling_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    reserved_at REAL NOT NULL,
    released_at REAL
) STRICT;
CREATE TABLE unprotected ( -- rounds that trained without privacy
    fingerprint TEXT NOT NULL,
    message_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    server_round INTEGER NOT NULL,
    job_digest TEXT NOT NULL,
    noted_at REAL NOT NULL,
    PRIMARY KEY (fingerprint, message_id)
) STRICT;
CREATE INDEX entries_by_fingerprint ON entries (fingerprint);
CREATE INDEX entries_by_message ON entries (message_id);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One reservation.

    Attributes:
        fingerprint: of the data set that is charged (:meth:`hanse.task.Examples.fingerprint`).
        reserved_at: Unix time in seconds.
        released_at: likewise; None while nothing that was trained may have left.
    """

    fingerprint: str
    message_id: str
    run_id: int
    server_round: int
    job_digest: str
    charge: Charge
    reserved_at: float
    released_at: float | None

    @property
    def state(self) -> Literal["reserved", "released"]:
        return "reserved" if self.released_at is None else "released"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What was spent of a data set's budget.

    Attributes:
        spent: epsilon of all entries together at the budget's delta, an upper bound.
        budget: the most epsilon there is.
        delta: the budget's.
        rounds: number of entries.
        tight: whether ``spent`` is the tightest bound known, not the fast one.
        unprotected: rounds that trained on the data without privacy; if there are any, no
            epsilon bounds what was given away, and ``spent`` is of the other rounds alone.
    """

    fingerprint: str
    spent: float
    budget: float
    delta: float
    rounds: int
    tight: bool
    unprotected: int = 0

    @property
    def left(self) -> float:
        """Epsilon that is left, at least 0."""
        return max(0.0, self.budget - self.spent)


class LedgerReader:
    """A ledger's contents, without the right to change them; works beside a running client.

    Args:
        path: the ledger's file.

    Raises:
        LedgerError: if there is none, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._connect(path.absolute().as_uri() + "?mode=ro", str(path))
        with self._checked():
            self._check_version()

    def _connect(self, uri: str, name: str) -> None:
        self._name = name
        self._mutex = threading.RLock()
        with self._checked():
            # Autocommit: each statement is a transaction of its own, durable when it returns.
            self._database = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False
            )

    def _check_version(self) -> None:
        version = self._version()
        if version != _VERSION:
            self._database.close()
            raise LedgerError(
                f"{self._name}: the ledger is of version {version}, this is version {_VERSION}",
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
            except sqlite3.Error as failure:
                raise LedgerError(f"{self._name}: {failure}") from failure

    def close(self) -> None:
        with self._checked():
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def data_sets(self) -> list[str]:
        """The fingerprints of the data that was ever trained on, the first first."""
        with self._checked():
            rows = self._database.execute(
                "SELECT fingerprint FROM (SELECT fingerprint, reserved_at AS at FROM entries"
                " UNION ALL SELECT fingerprint, noted_at FROM unprotected)"
                " GROUP BY fingerprint ORDER BY MIN(at)"
            )
            return [row[0] for row in rows]

    def entries(self, fingerprint: str | None = None) -> list[Entry]:
        """All entries in the order of their reservation, or those of one data set."""
        with self._checked():
            rows = self._database.execute(
                "SELECT fingerprint, message_id, run_id, server_round, job_digest,"
                " noise_multiplier, sampling_rate, steps, reserved_at, released_at"
                " FROM entries WHERE fingerprint = ?1 OR ?1 IS NULL ORDER BY id",
                (fingerprint,),
            ).fetchall()
        return [
            Entry(
                fingerprint=row[0],
                message_id=row[1],
                run_id=int(row[2]),
                server_round=row[3],
                job_digest=row[4],
                charge=Charge(noise_multiplier=row[5], sampling_rate=row[6], steps=row[7]),
                reserved_at=row[8],
                released_at=row[9],
            )
            for row in rows
        ]

    def statement(self, fingerprint: str, budget: Budget) -> Statement:
        """What was spent on a data set, by the tightest accountant: this may take seconds."""
        with self._checked():
            charges, rounds = self._spending(fingerprint)
            unprotected = self._unprotected(fingerprint)
        spent = epsilon(charges, budget.delta)
        verdict = Verdict(fits=spent <= budget.epsilon, epsilon=spent, tight=True)
        return _statement(fingerprint, rounds, verdict, budget, unprotected)

    def _unprotected(self, fingerprint: str) -> int:
        counted = self._database.execute(
            "SELECT COUNT(*) FROM unprotected WHERE fingerprint = ?", (fingerprint,)
        )
        return int(counted.fetchone()[0])

    def _spending(self, fingerprint: str) -> tuple[list[Charge], int]:
        """All charges of a data set, those of one mechanism added up, and their number."""
        rows = self._database.execute(
            "SELECT noise_multiplier, sampling_rate, SUM(steps), COUNT(*) FROM entries"
            " WHERE fingerprint = ? GROUP BY noise_multiplier, sampling_rate",
            (fingerprint,),
        ).fetchall()
        charges = [
            Charge(noise_multiplier=row[0], sampling_rate=row[1], steps=row[2]) for row in rows
        ]
        return charges, sum(row[3] for row in rows)


class Ledger(LedgerReader):
    """The ledger of a running client, which no other process can open meanwhile.

    Args:
        path: the ledger's file, made if there is none; None for one in memory, which is for
            simulations: it forgets everything.

    Raises:
        LedgerError: if it cannot be written, is damaged, or another client holds it.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock: int | None = None
        self._in_flight: set[int] = set()  # entries reserved since this ledger was opened
        if path is None:
            self._connect("file::memory:", "ledger in memory")
            self._create()
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path.with_name(path.name + ".lock"))
            self._connect(path.absolute().as_uri(), str(path))
            self._create()
            _sync_folder(path.parent)
        except OSError as unusable:
            self.close()
            raise LedgerError(f"{path}: {unusable.strerror}") from unusable
        except LedgerError:
            self.close()
            raise

    def _create(self) -> None:
        with self._checked():
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            if self._version() == 0:
                self._database.executescript(_SCHEMA)
            self._check_version()

    def close(self) -> None:
        if hasattr(self, "_database"):
            super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reserve(
        self,
        *,
        fingerprint: str,
        message_id: str,
        run_id: int,
        server_round: int,
        job_digest: str,
        charge: Charge,
        budget: Budget,
    ) -> Statement:
        """Charge a round to a data set, before its first batch; durable when this returns.

        A message that comes again after a crash takes up its earlier entry, as long as nothing
        trained under it can have left: the entry is not released, of the same charge, and was
        not made since this ledger was opened (its training might still be under way). In any
        other case it is charged anew.

        Returns:
            The statement with this round in it.

        Raises:
            BudgetError: if it does not fit; nothing was written.
            LedgerError: if it cannot be written; nothing may be trained.
        """
        with self._checked():
            entry = self._abandoned(fingerprint, message_id, charge)
            charges, rounds = self._spending(fingerprint)
            if entry is None:
                charges, rounds = [*charges, charge], rounds + 1
            verdict = decide(charges, budget=budget.epsilon, delta=budget.delta)
            if not verdict.fits:
                raise self._refusal(fingerprint, verdict, budget)
            if entry is None:
                event = (fingerprint, message_id, str(run_id), server_round, job_digest)
                entry = self._insert((*event, *_columns(charge)))
            self._in_flight.add(entry)
            unprotected = self._unprotected(fingerprint)
        return _statement(fingerprint, rounds, verdict, budget, unprotected)

    def note_unprotected(
        self, *, fingerprint: str, message_id: str, run_id: int, server_round: int, job_digest: str
    ) -> None:
        """Note that a round is about to train on a data set without privacy, durably.

        Raises:
            LedgerError: if it cannot be written; nothing may be trained.
        """
        with self._checked():
            self._database.execute(
                "INSERT OR IGNORE INTO unprotected VALUES (?, ?, ?, ?, ?, ?)",
                (fingerprint, message_id, str(run_id), server_round, job_digest, time.time()),
            )

    def release(self, message_id: str) -> None:
        """Mark that what was trained for a message may leave from now on, result or error.

        To be called before it does; doing so again changes nothing.

        Raises:
            LedgerError: if nothing was reserved for the message, or this cannot be written;
                nothing may leave then.
        """
        with self._checked():
            known = self._database.execute(
                "SELECT 1 FROM entries WHERE message_id = ?", (message_id,)
            ).fetchone()
            if known is None:
                raise LedgerError(f"{self._name}: nothing is reserved for message {message_id}")
            self._database.execute(
                "UPDATE entries SET released_at = ? WHERE message_id = ? AND released_at IS NULL",
                (time.time(), message_id),
            )

    def _abandoned(self, fingerprint: str, message_id: str, charge: Charge) -> int | None:
        rows = self._database.execute(
            "SELECT id FROM entries WHERE fingerprint = ? AND message_id = ?"
            " AND noise_multiplier = ? AND sampling_rate = ? AND steps = ?"
            " AND released_at IS NULL ORDER BY id",
            (fingerprint, message_id, *_columns(charge)),
        ).fetchall()
        return next((row[0] for row in rows if row[0] not in self._in_flight), None)

    def _insert(self, values: tuple[str | float, ...]) -> int:
        # Without RETURNING: that would leave the transaction open until its rows are read.
        row = self._database.execute(
            "INSERT INTO entries (fingerprint, message_id, run_id, server_round, job_digest,"
            " noise_multiplier, sampling_rate, steps, reserved_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, time.time()),
        ).lastrowid
        if row is None:
            raise LedgerError(f"{self._name}: the entry was not written")
        return row

    def _refusal(self, fingerprint: str, verdict: Verdict, budget: Budget) -> BudgetError:
        spent = epsilon(self._spending(fingerprint)[0], budget.delta)
        return BudgetError(
            f"this round would bring epsilon to {verdict.epsilon:.4g} at delta={budget.delta:g}, "
            f"above the data set's budget of {budget.epsilon:g} ({spent:.4g} is spent)"
        )


def _statement(
    fingerprint: str, rounds: int, verdict: Verdict, budget: Budget, unprotected: int
) -> Statement:
    return Statement(
        fingerprint=fingerprint,
        spent=verdict.epsilon,
        budget=budget.epsilon,
        delta=budget.delta,
        rounds=rounds,
        tight=verdict.tight,
        unprotected=unprotected,
    )


def _columns(charge: Charge) -> tuple[float, float, int]:
    return charge.noise_multiplier, charge.sampling_rate, charge.steps


def _lock(path: Path) -> int:
    """Hold ``path`` against other processes until the descriptor returned is closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as held:
        os.close(descriptor)
        raise LedgerError(
            f"{path}: another client holds this ledger",
            remedy="Stop the other client, or give each client a state folder of its own.",
        ) from held
    return descriptor


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable: a ledger that vanished would count from nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

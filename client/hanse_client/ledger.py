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
import time
from pathlib import Path

from hanse.errors import BudgetError, LedgerError
from hanse.privacy.accounting import Charge, Verdict, decide, epsilon

from hanse_client.ledger_reader import VERSION, LedgerReader, Statement, make_statement
from hanse_client.site import Budget

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
PRAGMA user_version = {VERSION};
COMMIT;
"""


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
        return make_statement(fingerprint, rounds, verdict, budget, unprotected)

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

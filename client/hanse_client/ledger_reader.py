"""What a ledger holds, read: entries, and statements of what was spent."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from hanse.errors import LedgerError
from hanse.privacy.accounting import Charge, Verdict, epsilon

from hanse_client.site import Budget

VERSION = 1
"""Of the ledger's tables."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One reservation.

    Attributes:
        fingerprint: of the data set that is charged (:func:`hanse.records.fingerprint`).
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
        if version != VERSION:
            self._database.close()
            raise LedgerError(
                f"{self._name}: the ledger is of version {version}, this is version {VERSION}",
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
        return make_statement(fingerprint, rounds, verdict, budget, unprotected)

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


def make_statement(
    fingerprint: str, rounds: int, verdict: Verdict, budget: Budget, unprotected: int
) -> Statement:
    """The statement that a verdict on a data set's entries makes."""
    return Statement(
        fingerprint=fingerprint,
        spent=verdict.epsilon,
        budget=budget.epsilon,
        delta=budget.delta,
        rounds=rounds,
        tight=verdict.tight,
        unprotected=unprotected,
    )

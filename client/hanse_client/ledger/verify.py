"""Whether a ledger is whole: its chain, the audit trail's word on it, and a recount."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanse.errors import LedgerBrokenError
from hanse.privacy.accounting import epsilon

from hanse_client.audit import read_chained
from hanse_client.ledger.anchors import rows_told
from hanse_client.ledger.book import Book
from hanse_client.ledger.chain import GENESIS
from hanse_client.ledger.reader import book_of, count_rows, read_rows
from hanse_client.recount import Recount, recount


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found whole.

    Attributes:
        rows: of the ledger.
        told: of these, how many the audit trail tells. A crash can have left one untold; the
            next start of the client tells it.
        digest: of the last row, in which all rows have a part.
        recounted: epsilon of each account by the audit trail alone, as the ledger has it.
    """

    rows: int
    told: int
    digest: str
    recounted: dict[int, float]


def verify_ledger(path: Path, trail: Path, delta: float) -> Verification:
    """Check everything; a client may be writing meanwhile.

    Raises:
        LedgerBrokenError: if the ledger or the trail was changed or cut off, or if what the
            trail tells does not come to what the ledger says.
    """
    there = path.exists()
    before = count_rows(path) if there else 0  # a client may write between the three readings
    lines = read_chained(trail)
    rows = read_rows(path) if there else []
    told = rows_told(rows, lines, before=before, name=str(path))
    return Verification(
        rows=len(rows),
        told=told,
        digest=rows[-1].digest if rows else GENESIS,
        recounted=_recounted(book_of(rows[:told]), lines, delta),
    )


def _recounted(book: Book, lines: list[dict[str, Any]], delta: float) -> dict[int, float]:
    found = recount(lines)
    kept = {
        account.number: Recount(charges=account.charges, unprotected=len(account.unprotected))
        for account in book.accounts()
    }
    for number in sorted(kept.keys() | found.keys()):
        if kept.get(number) != found.get(number):
            raise LedgerBrokenError(
                f"account {number}: the ledger and a recount from the audit trail differ"
            )
    return {number: epsilon(each.charges, delta) for number, each in found.items()}

"""The audit trail's word on the ledger: each row is told there, with its digest.

The order of the two durable writes is: first the row, then its line, then whatever depends on
them; and no row is added before the one before it is told. So a crash between the two leaves
exactly one row that the trail does not have yet, and it is told at the next opening. Anything
else is not the work of a crash: a line whose row is missing or another (the ledger was cut off,
or put back to an old copy), or more than one row without its line (the trail was).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hanse.errors import LedgerBrokenError

from hanse_client.ledger.chain import Row


def line_of(row: Row) -> dict[str, Any]:
    """What a line of the trail says of a row, beside its event."""
    return {"row": row.number, "digest": row.digest}


def rows_told(
    rows: Sequence[Row], lines: Iterable[dict[str, Any]], *, before: int, name: str
) -> int:
    """How many of the ledger's rows the trail tells: all, or all but the last.

    Args:
        before: how many rows there were when the trail was read.
        name: what a message calls the ledger.

    Raises:
        LedgerBrokenError: if the two cannot both be whole.
    """
    told = 0
    for line in lines:
        if "digest" not in line:
            continue
        told += 1
        if told > len(rows) or line_of(rows[told - 1]) != {
            "row": line.get("row"),
            "digest": line["digest"],
        }:
            raise LedgerBrokenError(
                f"{name}: row {told} is missing, or is not the one that the audit trail tells of"
            )
    if told < before - 1:
        raise LedgerBrokenError(
            f"{name}: there are {before} rows, and the audit trail tells of {told}: lines were "
            "removed from the trail"
        )
    return told

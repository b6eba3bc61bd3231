"""A ledger's contents, without the right to change them; works beside a running client."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from hanse.errors import LedgerBrokenError

from hanse_client.ledger import events
from hanse_client.ledger.book import Book
from hanse_client.ledger.chain import Chain, Row


def read_rows(path: Path) -> list[Row]:
    """The rows of a ledger, checked.

    Raises:
        LedgerError: if there is none, or it cannot be read.
        LedgerBrokenError: if a row does not follow from the one before it.
    """
    with closing(Chain(path, read_only=True)) as chain:
        return chain.rows()


def count_rows(path: Path) -> int:
    """How many rows a ledger has, unchecked.

    Raises:
        LedgerError: if there is none, or it cannot be read.
    """
    with closing(Chain(path, read_only=True)) as chain:
        return chain.count()


def read_ledger(path: Path) -> Book:
    """What a ledger says.

    Raises:
        LedgerError: as :func:`read_rows`.
    """
    return book_of(read_rows(path))


def book_of(rows: Iterable[Row], *, only_open: bool = False) -> Book:
    """What rows come to.

    Args:
        only_open: as :class:`Book` has it.

    Raises:
        LedgerBrokenError: if one of them makes no sense.
    """
    book = Book(only_open=only_open)
    for row in rows:
        book.apply(row.number, event_of(row))
    return book


def event_of(row: Row) -> events.Event:
    """What stands in a row.

    Raises:
        LedgerBrokenError: if it is no event.
    """
    try:
        return events.read(row.content)
    except ValueError as senseless:
        raise LedgerBrokenError(f"row {row.number} of the ledger holds no event") from senseless

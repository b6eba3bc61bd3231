"""The rows of a ledger that lives as long as its process: that of a simulated site."""

from __future__ import annotations

from hanse_client.ledger.chain import GENESIS, Row, row_digest


class MemoryChain:
    """Rows in a list, for simulations: light enough that there can be ten thousand of them."""

    name = "ledger in memory"

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """All rows."""
        return list(self._rows)

    def append(self, content: str) -> Row:
        """Add a row."""
        before = self._rows[-1].digest if self._rows else GENESIS
        number = len(self._rows) + 1
        row = Row(number=number, content=content, digest=row_digest(before, content))
        self._rows.append(row)
        return row

    def close(self) -> None:
        """Nothing is open."""

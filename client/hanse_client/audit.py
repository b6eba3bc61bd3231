"""A site's audit trail: what was asked of it and what left it, one line each, chained by hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hanse.errors import LedgerBrokenError, LedgerError
from hanse.trail import GENESIS, Trail, chained_lines, last_digest, trail_lines

__all__ = ["GENESIS", "AuditTrail", "last_digest", "read_audit", "read_chained"]


class AuditTrail(Trail):
    """The trail of one site; its path is None for simulated sites.

    The lines name messages, sizes, digests, metrics and reasons; no record and no weight is in
    them. It raises LedgerError where it cannot be written, and LedgerBrokenError where it was
    changed.
    """

    broken = LedgerBrokenError
    unwritable = LedgerError


def read_audit(path: Path) -> list[dict[str, Any]]:
    """The lines of a trail, oldest first; none where there is no file.

    Raises:
        LedgerBrokenError: if a line is not what :class:`AuditTrail` writes.
    """
    return list(trail_lines(path, LedgerBrokenError))


def read_chained(path: Path) -> list[dict[str, Any]]:
    """The lines of a trail, oldest first, each checked to follow from the one before it.

    Raises:
        LedgerBrokenError: naming the first line that does not.
    """
    return list(chained_lines(path, LedgerBrokenError))

"""Log lines of a long-running command: one a line, to standard error."""

from __future__ import annotations

import logging
import sys

from hanse.flower import quiet_flower
from hanse.plain import plain

LONGEST_LINE = 2000
"""Characters of one message, whatever it was made from."""


class OneLine(logging.Formatter):
    """Keeps each message to one line of printable text; only a traceback takes more."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        record.message = plain(record.message, LONGEST_LINE)
        return super().formatMessage(record)


def to_stderr(level: int = logging.INFO) -> None:
    """Write Hanse's log to standard error, and keep Flower's progress lines out of it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger("hanse")
    root.setLevel(level)
    root.handlers[:] = [handler]
    root.propagate = False
    quiet_flower()

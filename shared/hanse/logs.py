"""Log lines of a long-running command: one a line, to standard error."""

from __future__ import annotations

import logging
import sys

from hanse.flower import quiet_flower


def to_stderr(level: int = logging.INFO) -> None:
    """Write Hanse's log to standard error, and keep Flower's progress lines out of it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger("hanse")
    root.setLevel(level)
    root.handlers[:] = [handler]
    root.propagate = False
    quiet_flower()

"""Text of the other side in a log: one line, printable, and not without end."""

from __future__ import annotations

import io
import logging

import pytest
from hanse.logs import LONGEST_LINE, OneLine
from hanse.plain import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("all is well", "all is well"),
        ("Bahía, København", "Bahía, København"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("one\ntwo\r", "one\\ntwo\\r"),
        ("right\u202eleft", "right\\u202eleft"),
        ("x" * 60, "x" * 49 + "…"),
        ("\x00" * 60, "\\x00" * 12 + "\\…"),
    ],
)
def test_what_is_not_printed_is_written_out_and_cut(text: str, shown: str) -> None:
    assert plain(text, 50) == shown
    assert plain(text, 50).isprintable()


def test_a_log_line_stays_one() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(OneLine("%(message)s"))
    log = logging.Logger("a log of its own")
    log.addHandler(handler)
    log.warning("site said: %s", "\nroot: all is well\x1b[0m" + "x" * 10_000)
    (line,) = written.getvalue().splitlines()
    assert line.isprintable()
    assert len(line) == LONGEST_LINE

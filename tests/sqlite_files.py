"""What may become of an SQLite file on a bad disk, and what keeps it from that."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path


def rename_table(path: Path, table: str) -> None:
    """Put bytes that are no text into a table's name."""
    data, name = _compact(path), table.encode()
    assert b"table" + name + name in data  # type, name, and the name once more
    path.write_bytes(data.replace(b"table" + name, b"table" + b"\xdb" * len(name)))


def enlarge_row(path: Path) -> None:
    """Let the first row of the schema declare 2^48 bytes."""
    data = bytearray(_compact(path))
    cell = int.from_bytes(data[108:110], "big")
    data[cell : cell + 7] = b"\xff" * 6 + b"\x74"
    path.write_bytes(data)


def commits(db: sqlite3.Connection, act: Callable[[], object]) -> list[str]:
    """How far each transaction of an act is written through: ``FULL`` or ``NORMAL``."""
    ((before,),) = db.execute("PRAGMA synchronous").fetchall()
    mode, found = ["OFF", "NORMAL", "FULL"][before], []

    def told(statement: str) -> None:
        nonlocal mode
        if asked := re.match(r"PRAGMA synchronous = (\w+)", statement):
            mode = asked[1]
        elif statement == "COMMIT":
            found.append(mode)

    db.set_trace_callback(told)
    try:
        act()
    finally:
        db.set_trace_callback(None)
    return found


def _compact(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    return path.read_bytes()

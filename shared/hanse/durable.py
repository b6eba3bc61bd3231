"""What outlives a power cut."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

DAMAGE = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""What SQLite raises on a damaged file: some text in it may be none, and of some values it says
that they take more memory than there is, without having asked for any."""


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; after a crash it holds the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def replace_file(path: Path, written: Path) -> None:
    """Replace ``path`` by the file ``written``, in the same way."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

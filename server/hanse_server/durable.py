"""Files that are whole or absent: written under a temporary name, fsynced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hanse.durable import sync_folder, write_file

__all__ = ["new_folder", "write_file"]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it appears as ``path`` when the context ends well, and else not at all."""
    temporary = path.with_name(f".{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(temporary)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    sync_folder(path.parent)

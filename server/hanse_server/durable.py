"""Files that are whole or absent: written under a temporary name, fsynced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
from hanse.durable import sync_folder, write_file
from hanse.errors import WorkspaceError

__all__ = ["kept_in", "new_folder", "write_file"]


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Tell by name what cannot be written below the folder of a workspace.

    Raises:
        WorkspaceError: in place of the operating system's error, or of safetensors'.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as refused:
        why = refused.strerror if isinstance(refused, OSError) else None
        raise WorkspaceError(
            f"{folder} cannot be written: {why or refused}",
            remedy="Make room on the disk, or mend the permissions, and start the server again: "
            "the run goes on where it stopped.",
        ) from refused


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


def unreadable(file: Path, why: str) -> WorkspaceError:
    """The error of a file of a workspace that is not as it was written."""
    return WorkspaceError(
        f"{file} cannot be read: {why}",
        remedy="Read it with the version that ran it, or restore the file.",
    )

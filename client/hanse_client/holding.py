"""Files that one process holds against all others."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from hanse.errors import LedgerError

RETRY_SECONDS = 0.1


def hold(path: Path, *, patience: float = 0.0) -> int:
    """Hold ``path`` against other processes until the descriptor returned is closed.

    Args:
        patience: seconds to wait for another process that holds it.

    Raises:
        LedgerError: if another process holds it, or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as unusable:
        raise LedgerError(f"{path}: {unusable.strerror}") from unusable
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            if time.monotonic() < deadline:
                time.sleep(RETRY_SECONDS)
                continue
            os.close(descriptor)
            raise LedgerError(
                f"{path}: another client holds this ledger",
                remedy="Stop the other client, or give each client a state folder of its own.",
            ) from held
        return descriptor

"""Memory that is freed goes back to the operating system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_MMAP_THRESHOLD = -3  # mallopt(3)
LARGE_BYTES = 2 << 20


def give_back_large_blocks() -> None:
    """Have the C library map each large block by itself, and unmap it once it is freed.

    Left to itself, glibc keeps freed blocks of up to 32 MiB for later, between others that are
    in use: a server that makes a model and a sum anew each round holds several models that way.
    Elsewhere than with glibc nothing is changed.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, LARGE_BYTES)

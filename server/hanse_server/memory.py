"""Memory that is freed goes back to the operating system, and what stays is not looked through."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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


@contextmanager
def settling() -> Iterator[Callable[[], None]]:
    """What has the garbage collector leave out all that is there whenever it is called.

    Python's collector looks through every object of the process again and again, those of torch and
    Flower too, of which none goes: pauses of some 20 ms, and a fifth of the time of a simulation of
    small models. At the end of the context they count as before. A process that has
    itself set objects aside (:func:`gc.freeze`) is left as it is.
    """
    if gc.get_freeze_count():
        yield lambda: None
        return

    def settle() -> None:
        gc.collect()  # what is garbage by now would stay
        gc.freeze()

    try:
        yield settle
    finally:
        gc.unfreeze()

"""Threads that work beside the one that waits for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MANY_BYTES = 8 << 20
"""Bytes of arrays from which on several threads work on them."""


def threads(purpose: str, count: int) -> ThreadPoolExecutor:
    """Those of this process for ``purpose``, the same at each call: ``count`` of them at most."""
    return _threads(os.getpid(), purpose, count)


@cache
def _threads(process: int, purpose: str, count: int) -> ThreadPoolExecutor:
    """By process: one that was forked has none of its parent's threads."""
    return ThreadPoolExecutor(max(1, count), thread_name_prefix=purpose)


def of_each(work: Callable[[T], R], items: Sequence[T], size: int) -> Iterator[R]:
    """``work`` of each array, in their order: by a thread a processor where they are many bytes.

    Args:
        work: over one array; it must not call this in turn.
        size: bytes of all of them.
    """
    if len(items) > 1 and size >= MANY_BYTES:
        return threads("arrays", os.cpu_count() or 1).map(work, items)
    return map(work, items)

"""Threads that work beside the one that waits for them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def threads(purpose: str, count: int) -> ThreadPoolExecutor:
    """Those of this process for ``purpose``, the same at each call: ``count`` of them at most."""
    return _threads(os.getpid(), purpose, count)


@cache
def _threads(process: int, purpose: str, count: int) -> ThreadPoolExecutor:
    """By process: one that was forked has none of its parent's threads."""
    return ThreadPoolExecutor(max(1, count), thread_name_prefix=purpose)

"""Many site processes from one that has imported everything: to import torch takes seconds."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
_PR_SET_PDEATHSIG = 1


@contextmanager
def sites(module: str, *arguments: str) -> Iterator[None]:
    """The sites of ``module``, which calls :func:`fork_each`; they end with the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, cwd=ROOT
    )
    try:
        yield
    finally:
        process.communicate()


def fork_each(names: Sequence[str], live: Callable[[str], None]) -> None:
    """Fork a process for each name; kill them all at the end of the standard input."""
    children = [child for name in names if (child := _fork(name, live))]
    sys.stdin.buffer.read()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _fork(name: str, live: Callable[[str], None]) -> int:
    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        live(name)
    finally:
        sys.stderr.flush()
        os._exit(1)

"""Processes of a contestant, and what its server has noted of the rounds."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import IO

from tests.benchmarks.federations.case import Measured
from tests.benchmarks.federations.watch import Watch

ORDERLY_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """In a process that has just begun: let it end, in good order, when its parent is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def running(
    command: Sequence[str], surroundings: dict[str, str], log: IO[str]
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the context, in good order if it can."""
    process = subprocess.Popen(
        command, env=surroundings, stdout=log, stderr=log, text=True, preexec_fn=end_with_parent
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(ORDERLY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measured(told: Mapping[str, Sequence[float]], watch: Watch) -> Measured:
    """What follows from the moments, in Unix seconds, that a server has noted.

    Args:
        told: ``rested``, before there was a model; ``started`` and ``ended`` of each round.
    """
    started, ended = told["started"], told["ended"]
    return Measured(
        seconds=[end - start for start, end in zip(started, ended, strict=True)],
        between=[later - start for start, later in pairwise(started)],
        rest_bytes=watch.at(told["rested"][0]),
        peak_bytes=watch.peak(started[0], ended[-1]),
    )

"""Start-up: how long a command takes to answer, and a client to be ready for instructions.

Medians of several, interleaved, in seconds of the wall clock. ``over`` is the bare interpreter for
the command line, and a bare ``import torch`` for the client, whose row ends with the word of its
log that it is connected to a server which waits for it; ``ratio`` is over that floor.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from hanse_server.demo.processes import hanse_command

from tests.hospitals import Hospitals, environment

SITE = "hungary"


def rows(repeats: int = 7) -> list[dict[str, Any]]:
    """One row for what is started, and what it is held against."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Hospitals(Path(folder), rounds=1, private=True) as hospitals,
    ):
        hospitals.start_server()
        hospitals.await_log("server", "listening on")
        started: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: _run(sys.executable, "-c", "pass"),
            "hanse --help": lambda: _run(*hanse_command("--help")),
            "python -c 'import torch'": lambda: _run(sys.executable, "-c", "import torch"),
            "hanse client run, connected": lambda: _connected(hospitals),
        }
        seconds: dict[str, list[float]] = {what: [] for what in started}
        for _ in range(repeats):
            for what, start in started.items():
                seconds[what].append(start())
    medians = {what: median(each) for what, each in seconds.items()}
    floors = {"hanse --help": "python -c pass"}
    floors["hanse client run, connected"] = "python -c 'import torch'"
    return [
        {
            "what": what,
            "seconds": medians[what],
            "over": floors.get(what, ""),
            "more_seconds": medians[what] - medians[floors.get(what, what)],
            "ratio": medians[what] / medians[floors.get(what, what)],
        }
        for what in started
    ]


def _run(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return time.perf_counter() - started


def _connected(hospitals: Hospitals) -> float:
    log = hospitals.federation.log(SITE)
    log.unlink(missing_ok=True)
    started = time.perf_counter()
    hospitals.start_sites(SITE)
    while "connected to" not in (log.read_text() if log.exists() else ""):
        assert time.perf_counter() < started + 60, hospitals.log(SITE)
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    hospitals.stop(SITE)
    return seconds

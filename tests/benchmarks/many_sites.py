"""A thousand sites at one server: at rest, after a restart, in rounds and in a broadcast.

The sites are real clients without gates and training, in two processes of many streams each, on
the same machine: what they take is taken from the server. The server waits for the last site while
the others are looked at. ``restart``: it was killed and started again; ``come_back_s`` counts from
when it listens until all are there, ``most_a_second`` is the largest number that came within a
second. ``broadcast``: all sites get the model and refuse it, so that nothing comes up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.federations.case import Case, Measured
from tests.benchmarks.federations.forks import ROOT
from tests.benchmarks.federations.provisioned import Provisioned

PROCESSES = 2
REST_SECONDS = 20.0
LONGEST_SECONDS = 600.0
MB = 1e6


def rows(sites: int = 1000, rounds: int = 3, rest: float = REST_SECONDS) -> list[dict[str, Any]]:
    """One row a scene."""
    shared = Path("/dev/shm")  # noqa: S108  the sites' outboxes are on other machines' disks
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        names = Case(sites=sites, megabytes=1.0, rounds=1).site_names
        federation = Provisioned.create(Path(folder), names)
        return [
            *_small_rounds(federation, Case(sites=sites, megabytes=0.39, rounds=rounds), rest),
            _broadcast(federation, Case(sites=sites, megabytes=10.0, rounds=0)),
        ]


def _small_rounds(federation: Provisioned, case: Case, rest: float) -> Iterator[dict[str, Any]]:
    *names, last = case.site_names
    with _crowd(federation, names, "echo"):
        with _server(federation, case) as server:
            alone = _memory(server.pid, "VmRSS")
            connected = _await_connected(federation, len(names))
            used, began = _cpu(server.pid), time.monotonic()
            time.sleep(rest)
            busy = (_cpu(server.pid) - used) / (time.monotonic() - began)
            memory = _memory(server.pid, "VmRSS")
            yield _row(
                "at rest",
                case,
                seconds=connected.seconds,
                most_a_second=connected.most_a_second,
                cores=busy,
                memory_mb=memory / MB,
                kb_a_site=(memory - alone) / 1000 / len(names),
            )
            server.kill()
        with _server(federation, case) as server:
            back = _await_connected(federation, len(names))
            yield _row("restart", case, seconds=back.seconds, most_a_second=back.most_a_second)
            memory = _memory(server.pid, "VmRSS")
            with _crowd(federation, [last], "echo"):
                measured = _measured(server)
            yield _row(
                "round",
                case,
                seconds=median(measured.seconds[1:]),
                memory_mb=measured.peak_bytes / MB,
                more_models=(measured.peak_bytes - memory) / case.model_bytes,
            )


def _broadcast(federation: Provisioned, case: Case) -> dict[str, Any]:
    *names, last = case.site_names
    with _crowd(federation, names, "refuse"), _server(federation, case) as server:
        _await_connected(federation, len(names))
        memory = _memory(server.pid, "VmRSS")
        with _crowd(federation, [last], "refuse"):
            measured = _measured(server)
    return _row(
        "broadcast",
        case,
        seconds=measured.seconds[0],
        memory_mb=measured.peak_bytes / MB,
        more_models=(measured.peak_bytes - memory) / case.model_bytes,
    )


def _row(scene: str, case: Case, **found: float) -> dict[str, Any]:
    columns = ("seconds", "most_a_second", "cores", "memory_mb", "kb_a_site", "more_models")
    told = {column: found.get(column) for column in columns}
    return {"scene": scene, "sites": case.sites, "megabytes": case.megabytes, **told}


@contextmanager
def _crowd(federation: Provisioned, names: Sequence[str], sites_do: str) -> Iterator[None]:
    parts = [part for number in range(PROCESSES) if (part := names[number::PROCESSES])]
    where = (str(federation.folder), str(federation.port), sites_do)
    with ExitStack() as stack:
        for part in parts:
            command = [sys.executable, "-m", "tests.benchmarks.federations.crowd", *where, *part]
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT))
            stack.callback(process.kill)
        yield


@contextmanager
def _server(federation: Provisioned, case: Case) -> Iterator[subprocess.Popen[str]]:
    """A server that listens, in a workspace of its own if the one before ended its run."""
    run = federation.folder / "run"
    with suppress(FileNotFoundError):
        (run / "status.json").unlink()
    if (run / "history.jsonl").exists():
        run.rename(run.with_name(f"run-{time.monotonic_ns()}"))
    module = "tests.benchmarks.federations.crowded"
    where = (str(federation.folder), str(federation.port))
    command = [sys.executable, "-m", module, *where, *case.arguments]
    with (federation.folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
    try:
        _await(lambda: _status(federation) is not None, process)
        yield process
    finally:
        process.kill()
        process.communicate()


class _Connected:
    """How a crowd came: after how many seconds all were there, and the most within one."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._counts: list[tuple[float, int]] = []

    def note(self, count: int) -> None:
        self._counts.append((time.monotonic() - self._began, count))

    @property
    def seconds(self) -> float:
        return self._counts[-1][0]

    @property
    def most_a_second(self) -> float:
        return max(
            later - count
            for at, count in self._counts
            for then, later in self._counts
            if at <= then <= at + 1.0
        )


def _await_connected(federation: Provisioned, count: int) -> _Connected:
    connected = _Connected()

    def all_there() -> bool:
        status = _status(federation) or {"connected": []}
        connected.note(len(status["connected"]))
        return len(status["connected"]) >= count

    _await(all_there)
    return connected


def _await(true: Any, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"it did not come about in {LONGEST_SECONDS:.0f} s"
        assert process is None or process.poll() is None, "the server has ended"
        time.sleep(0.05)


def _status(federation: Provisioned) -> dict[str, Any] | None:
    try:
        return dict(json.loads((federation.folder / "run" / "status.json").read_text()))
    except (OSError, ValueError):
        return None


def _measured(server: subprocess.Popen[str]) -> Measured:
    output, _ = server.communicate(timeout=LONGEST_SECONDS)
    return Measured.told(output)


def _memory(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _cpu(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

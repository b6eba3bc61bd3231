"""The federation of four hospitals as real processes, for tests that need the whole of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hanse.job import Job, load_job
from hanse_client.books import audit_path
from hanse_client.site import load_site
from hanse_server.demo.federation import HOST, DemoFederation, set_up
from hanse_server.demo.processes import hanse_command
from hanse_server.history import read_history
from hanse_server.status import read_status


class Hospitals:
    """A provisioned federation whose processes a test starts, kills and stops.

    Args:
        rounds: of the job.
        private: whether the job trains under differential privacy.
    """

    def __init__(self, folder: Path, *, rounds: int, private: bool) -> None:
        self.federation: DemoFederation = set_up(folder)
        name = "job.toml" if private else "job-without-privacy.toml"
        self.job_file = folder / "sites" / name
        _substitute(self.job_file, r"^rounds = \d+", f"rounds = {rounds}")
        if private:  # few rounds would be calibrated to less noise than the hospitals ask for
            _substitute(self.job_file, r"^target_epsilon = .*", "noise_multiplier = 8.0")
        for file in self.federation.sites.values():
            if not private:
                _substitute(file, r"^\[policy\]", "[policy]\nallow_training_without_privacy = true")
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    @property
    def job(self) -> Job:
        """The job that the server runs."""
        return load_job(self.job_file)

    @property
    def workspace(self) -> Path:
        """The server's."""
        return self.federation.run

    def start_server(self) -> None:
        """Start the server, or start it again."""
        self._start(
            "server",
            "server",
            "run",
            str(self.job_file),
            *("--workspace", str(self.workspace)),
            *("--federation", str(self.federation.certificates)),
            *("--host", HOST, "--port", str(self.federation.port)),
            *("--metrics-port", str(self.federation.metrics_ports["server"])),
        )

    def start_sites(self, *names: str) -> None:
        """Start the clients of these hospitals; of all if none is named."""
        for name in names or self.federation.sites:
            self._start(name, "client", "run", str(self.federation.sites[name]))

    def kill(self, name: str) -> None:
        """kill -9."""
        self._running[name].send_signal(signal.SIGKILL)
        self._running[name].wait()

    def pause(self, name: str) -> None:
        """SIGSTOP: the process stands still, and its stream stays open."""
        self._running[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._running[name].send_signal(signal.SIGCONT)

    def awaited(self) -> list[str]:
        """Whose replies the server awaits."""
        return [each.site for each in read_status(self.workspace).awaited]

    def stop(self, name: str) -> int:
        """SIGTERM; the exit code."""
        self._running[name].terminate()
        return self._running[name].wait(30)

    def await_end(self, name: str, seconds: float = 120.0) -> int:
        """Wait until a process ends by itself; the exit code."""
        return self._running[name].wait(seconds)

    def await_round(self, number: int, seconds: float = 120.0) -> None:
        """Wait until a round is in the history."""
        wait_until(lambda: len(read_history(self.workspace)) >= number, seconds)

    def await_log(self, name: str, pattern: str, seconds: float = 60.0) -> None:
        """Wait until a process has printed something."""
        wait_until(lambda: bool(re.search(pattern, self.log(name))), seconds)

    def log(self, name: str) -> str:
        """What a process has printed."""
        return self.federation.log(name).read_text()

    def ledger(self, name: str) -> list[dict[str, Any]]:
        """The entries of a hospital's ledger, by its own command."""
        told = hanse("client", "ledger", str(self.federation.sites[name]), "--json")
        accounts = json.loads(told.stdout)["accounts"]
        return [entry for account in accounts for entry in account["entries"]]

    def trails(self) -> dict[str, Path]:
        """Each hospital's audit trail."""
        sites = self.federation.sites
        return {name: audit_path(load_site(file)) for name, file in sites.items()}

    def audited(self) -> dict[str, Any]:
        """What `hanse server audit` says, once it has found the server's trail in order.

        It is held against the run, and against the trails of all hospitals.
        """
        against = [part for path in self.trails().values() for part in ("--against", str(path))]
        told = hanse("server", "audit", "--workspace", str(self.workspace), *against, "--json")
        assert told.returncode == 0, told.stdout
        result: dict[str, Any] = json.loads(told.stdout)
        return result

    def _start(self, name: str, *arguments: str) -> None:
        with self.federation.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                hanse_command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
            )


def hanse(*arguments: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        hanse_command(*arguments),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """One thread a process: several share this machine's few cores."""
    return os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition, and fail if it does not come about in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"did not come about in {seconds} s"
        time.sleep(0.05)


def _substitute(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{pattern} stands {count} times in {file}"
    file.write_text(text)

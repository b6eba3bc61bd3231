"""The demo's processes: one server, one client a hospital, started and stopped as by people."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hanse.errors import ProcessError

from hanse_server.demo.federation import HOST, DemoFederation

STOP_SECONDS = 20.0


class Processes:
    """The running processes of a demo, by name; the server is ``server``."""

    def __init__(self, federation: DemoFederation) -> None:
        self._federation = federation
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start ``hanse`` with ``arguments``; what it prints goes to its log."""
        with self._federation.log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                hanse_command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def done(self) -> bool:
        """Whether the server has ended well.

        Raises:
            ProcessError: if a process has ended with an error, or a site before the server.
        """
        for name, process in self._running.items():
            code = process.poll()
            if code is not None and (code != 0 or name != "server"):
                raise ProcessError(
                    f"{name} ended with exit code {code} (log: {self._federation.log(name)})"
                )
        return self._running["server"].poll() == 0

    def stop(self) -> None:
        """Ask all that still run to stop; after a while, make them."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running(federation: DemoFederation) -> Iterator[Processes]:
    """The demo's server and sites while the context lasts."""
    processes = Processes(federation)
    try:
        processes.start("server", _server_arguments(federation))
        for name, file in federation.sites.items():
            processes.start(name, ["client", "run", str(file)])
        yield processes
    finally:
        processes.stop()


def _server_arguments(federation: DemoFederation) -> list[str]:
    arguments = ["server", "run", str(federation.job)]
    arguments += ["--workspace", str(federation.run)]
    arguments += ["--federation", str(federation.certificates)]
    arguments += ["--host", HOST, "--port", str(federation.port)]
    return [*arguments, "--metrics-port", str(federation.metrics_ports["server"])]


def read_ledgers(federation: DemoFederation) -> dict[str, dict[str, Any]]:
    """What each hospital's own ledger says was spent, as `hanse client ledger` prints it.

    Raises:
        ProcessError: if a ledger cannot be read.
    """
    asked = {  # all at once: most of the time goes into starting Python
        name: subprocess.Popen(
            hanse_command("client", "ledger", str(file), "--json"), stdout=subprocess.PIPE
        )
        for name, file in federation.sites.items()
    }
    ledgers = {}
    for name, process in asked.items():
        told, _ = process.communicate()
        if process.returncode != 0:
            raise ProcessError(
                f"`hanse client ledger` of {name} ended with exit code {process.returncode}",
                remedy="What it printed above says why.",
            )
        accounts = json.loads(told)["accounts"]
        ledgers[name] = {
            "epsilon": max((each["epsilon"] for each in accounts), default=0.0),
            "delta": max((each["delta"] for each in accounts), default=0.0),
            "rounds": sum(each["rounds"] for each in accounts),
        }
    return ledgers


def hanse_command(*arguments: str) -> list[str]:
    """The command line ``hanse``, by the interpreter that runs this."""
    return [sys.executable, "-m", "hanse.cli", *arguments]

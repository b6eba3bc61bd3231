"""Stock Flower as it is deployed: a SuperLink, a SuperNode for each site, and an app by `flwr run`.

All its processes are real and on loopback, without TLS (`--insecure`), with Flower's defaults; the
installation of an app's dependencies while it runs is turned off, which would only cost time. A
round is timed in the ServerApp, from FedAvg's messages to its mean.

Its SuperNodes ask every 3 seconds, which cannot be set. What can be, the wait between two looks for
a task to start (FLWR_SUPEREXEC_TASK_POLL_INTERVAL), makes no difference to a round: with 0.01 in
place of 1 second it took as long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from tests.benchmarks.federations.case import Case, Measured, asked
from tests.benchmarks.federations.ports import await_listener, free_ports
from tests.benchmarks.federations.processes import measured, running
from tests.benchmarks.federations.watch import Watch

APP = Path(__file__).parent / "flower_app"
BIN = Path(sys.executable).parent
LONGEST_SECONDS = 3000.0


def measure(case: Case, folder: Path, log: IO[str]) -> Measured:
    """Run the case."""
    link, *nodes = free_ports(1 + case.sites)
    surroundings = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
    }
    address = f"127.0.0.1:{link}"
    _configure(folder / "flwr", address)
    superlink = [
        *(str(BIN / "flower-superlink"), "--insecure", "--port", str(link)),
        "--disable-runtime-dependency-installation",
    ]
    with ExitStack() as stack:
        server = stack.enter_context(running(superlink, surroundings, log))
        watch = stack.enter_context(Watch(server.pid))
        for port in nodes:
            node = [
                *(str(BIN / "flower-supernode"), "--insecure", "--superlink", address),
                *("--port", str(port)),
            ]
            stack.enter_context(running(node, surroundings, log))
        await_listener(link)
        told = _run(case, folder, surroundings, server)
        return measured(told, watch)


def _configure(home: Path, address: str) -> None:
    home.mkdir()
    text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\n'
    (home / "config.toml").write_text(text + "insecure = true\n")


def _run(
    case: Case, folder: Path, surroundings: dict[str, str], server: subprocess.Popen[str]
) -> dict[str, list[float]]:
    """Submit the app, once the SuperLink takes it, and wait for what it tells."""
    told = folder / "told.json"
    settings = {"sites": case.sites, "rounds": case.rounds + 1}
    words = {"shapes": json.dumps(case.shapes), "told": str(told)}
    config = " ".join(
        [f"{name}={value}" for name, value in settings.items()]
        + [f"{name}='{value}'" for name, value in words.items()]
    )
    command = [str(BIN / "flwr"), "run", str(APP), "here", "--run-config", config]
    deadline = time.monotonic() + LONGEST_SECONDS
    subprocess.run(command, env=surroundings, check=True, stdout=sys.stderr)
    while not told.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the SuperLink has ended, or the rounds do not")
        time.sleep(0.2)
    found: dict[str, list[float]] = json.loads(told.read_text())
    return found


def main() -> None:
    """Run the case of the command line."""
    case = asked()
    with tempfile.TemporaryDirectory() as folder:
        measure(case, Path(folder), sys.stderr).tell()


if __name__ == "__main__":
    main()

"""A stock SuperLink and a SuperNode for each of some hospitals, as real processes on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hanse.examples import example
from hanse.job import Job, load_job
from hanse_server.history import read_history
from hanse_server.superlink.folder import write_flower_app
from hanse_server.workspace import audit_path

HEART = example("heart")
BIN = Path(sys.executable).parent


class Submitted:
    """A job as an app for `flwr run`, and the run that comes of it.

    Args:
        sites: how many there are.
        private: whether it trains under differential privacy. Sites are not asked to judge the
            model: each message costs the start of a process.
    """

    def __init__(self, folder: Path, sites: int, *, rounds: int, private: bool) -> None:
        folder.mkdir()
        self.workspace = folder / "run"
        self.app = folder / "app"
        text = (HEART / ("job.toml" if private else "job-without-privacy.toml")).read_text()
        text = re.sub(r"^rounds = .*", f"rounds = {rounds}", text, flags=re.M)
        text = re.sub(r"^quorum = .*", f"quorum = {sites}", text, flags=re.M)
        text = re.sub(r"^target_epsilon = .*", "noise_multiplier = 8.0", text, flags=re.M)
        text = re.sub(r"^select = .*", 'select = "last"\nfederated = false', text, flags=re.M)
        (folder / "job.toml").write_text(text)
        self.job: Job = load_job(folder / "job.toml")
        write_flower_app(folder / "job.toml", self.app, self.workspace)

    @property
    def ended(self) -> int:
        """How often its ServerApp has ended, in good order or by an error."""
        path = audit_path(self.workspace)
        return path.read_text().count('"event": "stopped"') if path.exists() else 0

    def history(self) -> list[dict[str, Any]]:
        """Its rounds."""
        return read_history(self.workspace)


class StockFlower:
    """Flower as it ships: `flower-superlink`, `flower-supernode`, `flwr run`.

    Args:
        sites: hospitals that get a SuperNode each; they allow training without privacy.
    """

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self.folder = folder
        self.sites = {name: folder / "sites" / f"{name}.toml" for name in sites}
        (folder / "sites").mkdir()
        for name, file in self.sites.items():
            shutil.copyfile(HEART / f"{name}.csv", file.with_suffix(".csv"))
            text = (HEART / f"{name}.toml").read_text()
            text = re.sub(r"^coordinator = .*\n", "", text, flags=re.M)
            text = re.sub(r"^\[tls\]\n(?:.+\n)+", "", text, flags=re.M)
            allowed = "[policy]\nallow_training_without_privacy = true"
            file.write_text(text.replace("[policy]", allowed, 1))
        self._port = _free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        home = self.folder / "flwr"
        home.mkdir()
        connection = f'[superlink.here]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n{connection}')
        self._start(
            "superlink",
            *("flower-superlink", "--insecure", "--port", str(self._port)),
            "--disable-runtime-dependency-installation",
        )
        _await(lambda: _listens(self._port), 60.0)
        for name in self.sites:
            self.start_node(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            os.killpg(process.pid, signal.SIGKILL)  # with the processes of apps that it started
            process.wait()

    def start_node(self, name: str) -> None:
        """Start a site's SuperNode."""
        self._start(
            name,
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self._port}"),
            *("--port", str(_free_port()), "--node-config", f'site="{self.sites[name]}"'),
        )

    def run(self, submitted: Submitted, seconds: float = 200.0) -> None:
        """`flwr run`, and wait until its ServerApp has ended."""
        before = submitted.ended
        self.submit(submitted)
        self._await(lambda: submitted.ended > before, seconds)

    def run_until(self, submitted: Submitted, rounds: int, seconds: float = 200.0) -> None:
        """`flwr run`, and kill -9 of its ServerApp once there are so many rounds."""
        self.submit(submitted)
        self._await(
            lambda: submitted.workspace.exists() and len(submitted.history()) >= rounds, seconds
        )
        (server_app,) = self._server_apps()
        os.kill(server_app, signal.SIGKILL)
        _await(lambda: not self._server_apps(), 30.0)

    def submit(self, submitted: Submitted) -> None:
        """`flwr run`, which does not wait."""
        command = [str(BIN / "flwr"), "run", str(submitted.app), "here"]
        done = subprocess.run(
            [*command, "--run-config", "metrics-port=0"],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _server_apps(self) -> list[int]:
        """The processes of ServerApps of this SuperLink."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended meanwhile
                continue
            if f"127.0.0.1:{self._port}" in words and any("flwr-serverapp" in w for w in words):
                found.append(int(process.name))
        return found

    def log(self, name: str) -> str:
        """What a process has printed, and those that it started."""
        return (self.folder / f"{name}.log").read_text()

    def _await(self, condition: Any, seconds: float) -> None:
        try:
            _await(condition, seconds)
        except AssertionError:
            for name in self._running:
                sys.stderr.write(f"--- {name}\n{self.log(name)[-6000:]}\n")
            raise

    def _start(self, name: str, command: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(BIN / command), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _await(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)

"""A real Prometheus for tests: the one on this machine, with the configuration of ``deploy``."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import pytest

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
ENDS = ("server", "client")

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One time series of an answer, at its newest."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A Prometheus that listens on ``port`` of loopback."""

    def __init__(self, port: int) -> None:
        self.port = port

    def query(self, expression: str) -> list[Sample]:
        """What the expression gives now."""
        data = self._get("/api/v1/query", query=expression)
        return [
            Sample(labels=series["metric"], value=float(series["value"][1]))
            for series in data["result"]
        ]

    def value(self, expression: str) -> float:
        """The value of an expression that gives one series."""
        samples = self.query(expression)
        assert len(samples) == 1, f"{expression}: {samples}"
        return samples[0].value

    def alerts(self) -> dict[str, str]:
        """The state of each alert that is not inactive: ``pending`` or ``firing``."""
        alerts = self._get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert["state"] for alert in alerts}

    def await_targets(self, count: int) -> None:
        """Wait until ``count`` targets have been scraped."""
        wait_for(lambda: len(self.query('up{job=~"hanse-.*"} == 1')) == count)

    def _get(self, path: str, **parameters: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"{path}?{urlencode(parameters)}")
            answer = json.load(connection.getresponse())
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def run_prometheus(folder: Path, **targets: Sequence[str]) -> Iterator[Prometheus]:
    """Run Prometheus in ``folder`` while the context lasts; without it, skip, but fail in CI.

    Args:
        targets: ``server=`` and ``client=``, each a list of host:port to scrape.
    """
    binary = find("prometheus")
    configuration = folder / "prometheus"
    shutil.copytree(DEPLOYED, configuration)
    main = configuration / "prometheus.yml"
    main.write_text(main.read_text().replace("_interval: 15s", "_interval: 250ms"))
    for end in ENDS:
        listed = json.dumps([{"targets": list(targets.pop(end, ()))}])
        (configuration / "targets" / f"{end}.yml").write_text(listed)
    assert not targets, f"there is no end called {', '.join(targets)}"
    port = free_port()
    command = [
        binary,
        f"--config.file={main}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: process.poll() is not None or _ready(port))
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            yield Prometheus(port)
        finally:
            process.terminate()
            process.wait(timeout=30)


def find(binary: str) -> str:
    """The path of a program of Debian's ``prometheus``; without it, skip, but fail in CI."""
    path = shutil.which(binary)
    if path is None:
        reason = f"{binary} is not on this machine: apt-get install prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def free_port() -> int:
    """A port of loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], T], *, seconds: float = 30.0) -> T:
    """Poll until the condition holds."""
    until = time.monotonic() + seconds
    while not (met := condition()):
        assert time.monotonic() < until, f"not met within {seconds} s"
        time.sleep(0.1)
    return met


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/-/ready")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()

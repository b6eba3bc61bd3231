"""What is told while nothing happens."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hanse.identity import node_id_of
from hanse_server import telling
from hanse_server.metrics import ServerMetrics
from hanse_server.status import Awaited, read_status
from hanse_server.telling import Teller
from prometheus_client import CollectorRegistry

from tests.fleet import plane_job

NAMES = [f"site-{number}" for number in range(8)]


class Grid:
    """Sites that come and go."""

    def __init__(self) -> None:
        self.connected = list(NAMES)

    def get_node_ids(self) -> list[int]:
        return [node_id_of(name) for name in self.connected]

    def site_name(self, node: int) -> str:
        return next(name for name in NAMES if node_id_of(name) == node)


class Desk:
    def __init__(self, *names: str) -> None:
        now = time.time()
        self.awaited = tuple(Awaited(site=name, since=now, until=now + 3600) for name in names)


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Grid:
    monkeypatch.setattr(telling, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(telling, "FIRST_TOLD_SECONDS", 0.2)
    caplog.set_level(logging.WARNING, "hanse.server")
    return Grid()


def teller(grid: Any, folder: Path) -> Teller:
    job = plane_job(secure=False, rounds=3)
    return Teller(job, grid, ServerMetrics(CollectorRegistry()), folder)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stall_is_told_to_the_log_ever_more_seldom(
    grid: Grid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = teller(grid, tmp_path)
    with told.running():
        told.show("training", 2, desk=Desk(*NAMES[:7]))  # type: ignore[arg-type]
        time.sleep(0.1)
        assert not caplog.records
        grid.connected.remove("site-1")
        until(lambda: len(caplog.records) == 2)
        seconds = [record.args[3] for record in caplog.records]  # type: ignore[index]
        assert seconds == pytest.approx([0.2, 0.4], abs=0.15)
        line = caplog.records[0].getMessage()
        assert "round 2/3 training" in line
        who = "the reply of site-0, site-1, site-2, site-3, site-4 and 2 more"
        assert re.search(who + r" until .*\(not connected: site-1\)", line)
        told.show("training", 2, desk=Desk("site-6"))  # type: ignore[arg-type]
        caplog.clear()
        until(lambda: len(caplog.records) == 1)
        assert "the reply of site-6 until" in caplog.records[0].getMessage()


def test_the_status_stays_true_while_nothing_happens(grid: Grid, tmp_path: Path) -> None:
    told = teller(grid, tmp_path)
    with told.running():
        told.show("training", 2, desk=Desk("site-1"))  # type: ignore[arg-type]
        until((tmp_path / "status.json").exists)
        grid.connected.remove("site-1")
        until(lambda: "site-1" not in read_status(tmp_path).connected)
        status = read_status(tmp_path)
        assert status.waiting_for == "the reply of site-1"
        assert len(status.connected) == 7


def test_where_nobody_is_awaited_nothing_is_told(
    grid: Grid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = teller(grid, tmp_path)
    with told.running():
        told.show("checkpointing", 2)
        time.sleep(0.5)
        assert not caplog.records

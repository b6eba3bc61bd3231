"""Secure aggregation against plain averaging: seconds and bytes of a round, no training.

A row is the median of three rounds on the inline engine, where all sites work one after the other
in this process, so that ``site_ms`` is one site's own work and ``server_ms`` the server's. Each
site trains in the first round, which is left out, and sends the same update again. Bytes are
those of one site's messages as they cross the wire. ``lost`` sites share their keys and never
send an update: to remove their masks is what the server does most for.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from flwr.app import Message, MessageType
from hanse.flower import quiet_flower
from hanse.job import Job
from hanse.wire.message import encode
from hanse_client.training import Trainer, TrainingResult

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.fleet import Fleet, plane_job

ROUNDS = 3
WIDTHS = {"100k": 316, "1M": 1000}  # weights and biases: 100,172 and 1,001,000
CASES = ((4, 0), (16, 0), (64, 0), (4, 1), (16, 5), (64, 21))


def rows() -> list[dict[str, Any]]:
    """A plain and a secure row for each model and number of sites."""
    quiet_flower()
    logging.getLogger("hanse").setLevel(logging.ERROR)
    return [
        _row(model, *case, secure=secure)
        for model in WIDTHS
        for case in CASES
        for secure in (False, True)
    ]


def _row(model: str, sites: int, lost: int, *, secure: bool) -> dict[str, Any]:
    fleet = Fleet(sites)
    fleet.engine.lose = {(MessageType.TRAIN, name) for name in fleet.names[:lost]}
    job = plane_job(
        secure=secure,
        rounds=ROUNDS + 1,  # the first reads records
        task={"name": "tests.fleet:Plane", "options": {"width": WIDTHS[model]}},
        evaluation={"federated": False},
    )
    meter = Meter(fleet)
    with tempfile.TemporaryDirectory() as folder, _ready_made():
        measured = meter.run(job, Path(folder))
    how = "secure" if secure else "plain"
    return {"model": model, "sites": sites, "lost": lost, "round": how, **measured}


class Meter:
    """Times the sites apart from the server, and counts the bytes of the last site."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._execute = fleet.engine.execute
        self._last = fleet.names[-1]
        self._rounds: dict[str, dict[str, float]] = {}
        fleet.engine.execute = self._metered  # type: ignore[method-assign]

    def run(self, job: Job, folder: Path) -> dict[str, float]:
        """Medians over the rounds but the first."""
        ended = [time.perf_counter()]
        loop = self._fleet.loop(job, folder)
        loop._on_round = lambda record: ended.append(time.perf_counter())
        loop.run()
        metered = list(self._rounds.values())[1:]
        walls = [1e3 * (end - start) for start, end in pairwise(ended[1:])]
        servers = [wall - each["all_sites_ms"] for wall, each in zip(walls, metered, strict=True)]
        result = {key: median(each[key] for each in metered) for key in ("up_kb", "down_kb")}
        count = len(self._fleet.names)
        result["site_ms"] = median(each["all_sites_ms"] for each in metered) / count
        return result | {"server_ms": median(servers)}

    def _metered(self, messages: Sequence[Message]) -> Iterator[Message]:
        group = messages[0].metadata.group_id
        empty = {"all_sites_ms": 0.0, "up_kb": 0.0, "down_kb": 0.0}
        now = self._rounds.setdefault(group, empty)
        for message in messages:
            started = time.perf_counter()
            replies = list(self._execute([message]))
            now["all_sites_ms"] += 1e3 * (time.perf_counter() - started)
            if self._fleet.engine.name_of(message) == self._last:
                now["down_kb"] += _kilobytes(message)
                now["up_kb"] += sum(map(_kilobytes, replies))
            yield from replies
            self._fleet.engine.replies.clear()


def _kilobytes(message: Message) -> float:
    encoded = encode(message.error if message.has_error() else message.content)
    return (len(encoded.content) + encoded.body_size) / 1e3


def _ready_made() -> Any:
    """Training that gives what it gave in the first round, at once."""
    train, given = Trainer.train, dict[int, TrainingResult]()

    def again(trainer: Trainer, *arguments: Any) -> TrainingResult:
        if id(trainer) not in given:
            given[id(trainer)] = train(trainer, *arguments)
        return given[id(trainer)]

    return patch.object(Trainer, "train", again)

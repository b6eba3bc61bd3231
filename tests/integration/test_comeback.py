"""A server that comes back waits for whom it had asked: their replies are paid for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from hanse.flower import ARRAYS, METRICS, WEIGHT, to_record
from hanse.job import Job
from hanse.task import Examples, NoOptions, Task
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.history import read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import RoundLoop
from hanse_server.status import read_status
from hanse_server.workspace import Workspace
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

from tests.loopback import Loopback, RunningServer, wait_until

NAMES = ("east", "north", "west")


class Line(Task[NoOptions]):
    """One number in, one number out."""

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def read(self, source: Path) -> Examples:
        raise AssertionError("the server reads no records")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def job(deadline: float, *, rounds: int = 1, **strategy: Any) -> Job:
    return Job.model_validate(
        {
            "name": "line",
            "rounds": rounds,
            "task": {"name": f"{__name__}:Line"},
            "training": {"steps": 1},
            "privacy": {"mechanism": "none"},
            "strategy": {"quorum": 1, "deadline": deadline, **strategy},
            "evaluation": {"federated": False},
        }
    )


def train(message: Message) -> Message:
    update = to_record({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    told = MetricRecord({WEIGHT: 1.0})
    return Message(RecordDict({ARRAYS: update, METRICS: told}), reply_to=message)


class Federation:
    """Three sites and the servers of one run, one after the other."""

    def __init__(self, loopback: Loopback, folder: Path, job: Job) -> None:
        self.loopback, self.job = loopback, job
        self.workspace = Workspace(folder / "run", job)
        self.clients = {name: loopback.client(name, train) for name in NAMES}

    def loop(self, server: RunningServer) -> tuple[RoundLoop, GrpcGrid]:
        grid = GrpcGrid(server.link, self.workspace.run_id)
        metrics = ServerMetrics(CollectorRegistry())
        return RoundLoop(self.job, grid, self.workspace, metrics, lambda record: None), grid

    def die_in_the_first_round(self) -> Any:
        """A server asks all, and is gone before it has folded a reply."""
        server = self.loopback.server()
        server.await_sites(*NAMES)
        loop, grid = self.loop(server)
        loop._resume()
        config = loop._config(1)
        messages = list(loop._strategy.configure_train(1, loop._arrays, config, grid))
        replies = grid.send_and_receive(messages, timeout=60)
        wait_until(lambda: all(client.outbox.instructions() for client in self.clients.values()))
        server.link.stop()
        return replies  # to be kept: a process that is killed closes no iterator


def test_the_round_waits_for_who_was_asked(loopback: Loopback, tmp_path: Path) -> None:
    federation = Federation(loopback, tmp_path, job(deadline=60.0))
    replies = federation.die_in_the_first_round()
    federation.clients["west"].stop()
    server = loopback.server()
    server.await_sites("east", "north")
    loop, _ = federation.loop(server)
    running = threading.Thread(target=loop.run, daemon=True)
    running.start()
    status = federation.workspace.folder / "status.json"
    wait_until(status.exists)
    wait_until(lambda: "1 sites away" in read_status(federation.workspace.folder).waiting_for)
    loopback.client("west", lambda message: pytest.fail("it was asked to train again"))
    running.join(20)
    (line,) = read_history(federation.workspace.folder)
    assert {name: site["outcome"] for name, site in line["sites"].items()} == dict.fromkeys(
        NAMES, "result"
    )
    assert replies is not None


def test_it_waits_no_longer_than_a_round_may_take(loopback: Loopback, tmp_path: Path) -> None:
    federation = Federation(loopback, tmp_path, job(deadline=1.0))
    replies = federation.die_in_the_first_round()
    federation.clients["west"].stop()
    server = loopback.server()
    server.await_sites("east", "north")
    federation.loop(server)[0].run()
    (line,) = read_history(federation.workspace.folder)
    assert set(line["sites"]) == {"east", "north"}
    assert replies is not None


@pytest.mark.parametrize("goal", [2, 3])
def test_what_a_durable_round_holds_is_folded_no_second_time(
    loopback: Loopback, tmp_path: Path, goal: int
) -> None:
    folding = job(deadline=60.0, rounds=3, name="FedBuff", goal=goal, quorum=goal)
    federation = Federation(loopback, tmp_path, folding)
    server = loopback.server()
    server.await_sites(*NAMES)
    loop, grid = federation.loop(server)

    def die() -> None:
        raise InterruptedError

    grid.settle = die  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):  # the checkpoint is written, and nothing settled
        loop.run()
    server.link.stop()
    second = loopback.server()
    second.await_sites(*NAMES)
    federation.loop(second)[0].run()
    folded = [
        site["reply"]
        for line in read_history(federation.workspace.folder)
        for site in line["sites"].values()
        if site["outcome"] == "result"
    ]
    assert len(folded) == 3 * goal
    assert len(set(folded)) == len(folded)

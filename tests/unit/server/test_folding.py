"""Rounds that close early, and updates that count in a later round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hanse.errors import StrategyError
from hanse.flower import ARRAYS, METRICS, WEIGHT, to_record
from hanse.job import Job
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.model import initial_weights
from hanse_server.rounds import RoundLoop
from hanse_server.simulation.grid import LocalGrid
from hanse_server.strategies.flower import OnWeights
from hanse_server.workspace import Workspace
from prometheus_client import CollectorRegistry

from tests.fleet import Fleet, LossyEngine, plane_job

NAMES = [f"site-{number}" for number in range(4)]


def job(rounds: int, **strategy: Any) -> Job:
    return plane_job(
        secure=False,
        rounds=rounds,
        strategy={"quorum": 1, "patience": 1, **strategy},
        evaluation={"federated": False},
    )


def outcomes(folder: Path) -> list[dict[str, tuple[str, int]]]:
    return [
        {name: (site["outcome"], site["staleness"]) for name, site in line["sites"].items()}
        for line in read_history(folder)
    ]


def test_a_round_closes_at_its_goal_and_drops_the_rest(tmp_path: Path) -> None:
    fleet = Fleet(4)
    fleet.loop(job(2, goal=3), tmp_path).run()
    for line in read_history(tmp_path):
        ended = [site["outcome"] for site in line["sites"].values()]
        assert sorted(ended) == ["missing", "result", "result", "result"]
    assert len(fleet.engine.replies) == 2 * 3  # nobody trains in vain


def test_what_comes_late_counts_in_the_round_in_which_it_comes(tmp_path: Path) -> None:
    fleet = Fleet(4)
    fleet.loop(job(3, name="FedBuff", goal=2), tmp_path).run()
    first, second, third = outcomes(tmp_path)
    asked_first = {name for name, (outcome, _) in first.items() if outcome == "result"}
    assert sum(outcome == "working" for outcome, _ in first.values()) == 2
    late = {*fleet.names} - asked_first
    assert {name: second[name] for name in late} == dict.fromkeys(late, ("result", 1))
    assert {name: second[name][0] for name in asked_first} == dict.fromkeys(asked_first, "working")
    assert {name: third[name] for name in asked_first} == dict.fromkeys(asked_first, ("result", 1))


class Scripted(LossyEngine):
    """Answers with updates that a test can add up: of site k, 10^k everywhere."""

    def __init__(self) -> None:
        super().__init__(Fleet(0).engine._app, NAMES)

    def execute(self, messages: Any) -> Any:
        for message in sorted(messages, key=self.name_of):
            value = 10.0 ** NAMES.index(self.name_of(message))
            update = {"weight": torch.full((150, 150), value), "bias": torch.zeros(150)}
            told = MetricRecord({WEIGHT: 1.0})
            yield Message(RecordDict({ARRAYS: to_record(update), METRICS: told}), reply_to=message)


def scripted(job: Job, folder: Path) -> list[torch.Tensor]:
    """The weight of the model after each round, less that of before the first."""
    workspace = Workspace(folder, job)
    grid = LocalGrid(workspace.run_id, NAMES, Scripted())
    models: list[torch.Tensor] = []

    def keep(record: Any) -> None:
        models.append(load_model(folder / "models" / "last.safetensors")["weight"])

    loop = RoundLoop(job, grid, workspace, ServerMetrics(CollectorRegistry()), keep)
    before = initial_weights(loop._task, job)["weight"]
    loop.run()
    return [model - before for model in models]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_a_late_update_is_discounted_by_its_age(tmp_path: Path, exponent: float) -> None:
    choice = {"name": "FedBuff", "goal": 2, "staleness_exponent": exponent}
    first, second = scripted(job(2, **choice), tmp_path)
    late = 2.0**-exponent
    torch.testing.assert_close(first, torch.full((150, 150), 11.0 / 2), rtol=1e-4, atol=0)
    step = second - first
    torch.testing.assert_close(step, torch.full((150, 150), 1100.0 / 2 * late), rtol=1e-4, atol=0)


def test_every_update_counts_once(tmp_path: Path) -> None:
    choice = {"name": "FedBuff", "goal": 3, "staleness_exponent": 0.0}
    models = scripted(job(4, **choice), tmp_path)
    # 0 1 2 of the first round; 3 of the first and 0 1 of the second; 2 of the second and 0 1; ...
    steps = [111.0, 1011.0, 111.0, 1011.0]
    assert [float(model.mean()) for model in models] == pytest.approx(
        [sum(steps[: n + 1]) / 3 for n in range(4)], rel=1e-4
    )


def test_a_site_too_far_behind_is_given_up(tmp_path: Path) -> None:
    fleet = Fleet(4)
    fleet.loop(job(4, late="fold", goal=1, max_staleness=1), tmp_path).run()
    reasons = [
        site["reason"]
        for line in read_history(tmp_path)
        for site in line["sites"].values()
        if site["outcome"] == "missing"
    ]
    assert "2 rounds behind, and strategy.max_staleness = 1" in reasons


INVALID: dict[str, Callable[[], Job]] = {
    "would close every round below its quorum, 3": lambda: job(1, quorum=3, goal=2),
    "FedBuff needs goal": lambda: job(1, name="FedBuff"),
    "needs a strategy that folds updates one by one": lambda: job(1, name="Krum", late="fold"),
    "weighs single updates by their age": lambda: plane_job(
        secure=True, strategy={"late": "fold", "quorum": 3}
    ),
    "needs single updates, which secure_aggregation hides": lambda: plane_job(
        secure=True, checks={"max_update_norm": 1.0}
    ),
}


@pytest.mark.parametrize("told", INVALID)
def test_what_cannot_be_is_refused_as_the_job_is_read(told: str) -> None:
    with pytest.raises(ValueError, match=told):
        INVALID[told]()


def test_a_strategy_that_makes_no_model_of_a_full_round_is_named(tmp_path: Path) -> None:
    class Idle(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return None, None

    loop = Fleet(2).loop(job(1), tmp_path)
    loop._strategy = OnWeights(Idle(min_train_nodes=1, min_available_nodes=1), seed=0)
    with pytest.raises(StrategyError, match="made no model of 2 results"):
        loop.run()

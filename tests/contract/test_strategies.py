"""Every strategy, Hanse's and Flower's, in the same federation: it learns, and it resumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hanse.errors import StrategyError
from hanse.examples import example
from hanse.job import Job, load_job
from hanse.metrics import new_registry
from hanse_server.checkpoint import load_model
from hanse_server.history import RoundRecord, read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.simulation import simulate
from hanse_server.simulation.sites import sites_of_folder
from hanse_server.strategies import FLOWER, make_strategy
from hanse_server.workspace import Workspace

OPTIONS: dict[str, dict[str, Any]] = {
    "StreamingFedAvg": {"momentum": 0.5, "average_from": 2},
    "FedAvgM": {"server_momentum": 0.5},
    "FedAdam": {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99},
    "FedYogi": {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99},
    "FedAdagrad": {"eta": 0.1},
    "FedProx": {"proximal_mu": 0.1},
    "MultiKrum": {"num_nodes_to_select": 2},
    "QFedAvg": {"client_learning_rate": 1.0, "q": 0.2},
}
STRATEGIES = ("StreamingFedAvg", *FLOWER)


def job(strategy: str, **options: Any) -> Job:
    whole = load_job(example("heart") / "job-without-privacy.toml")
    chosen = whole.strategy.model_copy(
        update={"name": strategy, "options": options or OPTIONS.get(strategy, {})}
    )
    return whole.model_copy(update={"rounds": 4, "strategy": chosen})


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """The example, with policies that let out what q-FedAvg needs."""
    folder = tmp_path / "hospitals"
    shutil.copytree(example("heart"), folder)
    for file in sites_of_folder(folder).files:
        text = file.read_text()
        assert "release = [" in text
        file.write_text(text.replace("release = [", 'release = ["train_loss", '))
    return folder


def run(
    job: Job, hospitals: Path, folder: Path, *, stop_after: int | None = None
) -> list[dict[str, Any]]:
    sites = sites_of_folder(hospitals).model_copy(update={"waived": True})

    def interrupt(record: RoundRecord) -> None:
        if record.round == stop_after:
            raise KeyboardInterrupt

    workspace = Workspace(folder, job)
    try:
        simulate(job, sites, workspace, ServerMetrics(new_registry()), on_round=interrupt)
    except KeyboardInterrupt:
        assert stop_after is not None
    return read_history(folder)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_federation_learns(name: str, hospitals: Path, tmp_path: Path) -> None:
    history = run(job(name), hospitals, tmp_path / "run")
    losses = [line["federated"]["loss"] for line in history]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert all(site["outcome"] == "result" for site in history[-1]["sites"].values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_interrupted_run_ends_with_the_same_model(
    name: str, hospitals: Path, tmp_path: Path
) -> None:
    run(job(name), hospitals, tmp_path / "whole")
    assert len(run(job(name), hospitals, tmp_path / "cut", stop_after=2)) == 2
    assert len(run(job(name), hospitals, tmp_path / "cut")) == 4
    models = [
        load_model(tmp_path / folder / "models" / "last.safetensors") for folder in ("whole", "cut")
    ]
    for weight in models[0]:
        assert torch.equal(models[0][weight], models[1][weight])


def test_an_unknown_strategy_is_told() -> None:
    with pytest.raises(StrategyError, match="no such strategy"):
        make_strategy(job("FedMagic"))


def test_options_that_a_strategy_does_not_take_are_told() -> None:
    with pytest.raises(StrategyError, match="betta"):
        make_strategy(job("FedTrimmedAvg", betta=0.1))


def test_a_strategy_that_lacks_a_metric_says_which(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="train_loss"):
        run(job("QFedAvg"), example("heart"), tmp_path / "run")

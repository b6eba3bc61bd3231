"""Sites that train together: what each would learn alone, and every gate passed by each."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hanse.examples import example
from hanse.job import Job, load_job
from hanse_client.stacked.stack import Stack
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.simulate import SimulationRequest, run_simulation

HEART = example("heart")
PLAIN = load_job(HEART / "job-without-privacy.toml")


def job(whole: Job = PLAIN, **training: Any) -> Job:
    settings = whole.training.model_dump() | {"batch_size": 16} | training
    changes = {
        "rounds": 3,
        "training": type(whole.training).model_validate(settings),
        "strategy": whole.strategy.model_copy(update={"quorum": 1}),
        "evaluation": whole.evaluation.model_copy(update={"federated": False}),
    }
    return whole.model_copy(update=changes)


def run(asked: Job, folder: Path, engine: str, **request: Any) -> list[dict[str, Any]]:
    sites: dict[str, Any] = {
        "data": HEART / "cleveland.csv",
        "sites": 7,
        "partition": "dirichlet:0.5",
    }
    run_simulation(asked, SimulationRequest(engine=engine, **sites | request), folder)
    return read_history(folder)


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sites trained together, each time."""
    sizes: list[int] = []
    train = Stack.train

    def counted(stack: Stack) -> Any:
        sizes.append(len(stack._sites))
        return train(stack)

    monkeypatch.setattr(Stack, "train", counted)
    return sizes


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"lr": 0.1}, "steps": None, "epochs": 2},  # of unequal lengths
        {"optimizer": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, "proximal_mu": 0.5},
        {"optimizer": {"name": "adam", "lr": 0.01}, "steps": None, "epochs": 3},
        {"optimizer": {"name": "rmsprop", "lr": 0.01, "momentum": 0.5}},
        {"schedule": {"name": "cosine", "warmup": 1}},
    ],
    ids=["epochs", "momentum and FedProx", "adam", "rmsprop", "schedule"],
)
def test_together_they_learn_what_each_would_alone(
    training: dict[str, Any], tmp_path: Path, stacked: list[int]
) -> None:
    alone = run(job(**training), tmp_path / "alone", "inline")
    together = run(job(**training), tmp_path / "together", "vectorised")

    assert stacked == [7, 7, 7]
    first, second = (
        load_model(tmp_path / name / "models" / "last.safetensors")
        for name in ("alone", "together")
    )
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], rtol=1e-4, atol=1e-5)
    for before, after in zip(alone, together, strict=True):
        for name, site in before["sites"].items():
            found = after["sites"][name]
            assert list(after["sites"]) == list(before["sites"])
            assert found["weight"] == site["weight"]
            assert found["metrics"] == pytest.approx(site["metrics"], rel=1e-3, abs=1e-5)


def test_a_site_whose_passes_are_in_bfloat16_trains_alone(
    tmp_path: Path, stacked: list[int]
) -> None:
    sites = tmp_path / "sites"
    shutil.copytree(HEART, sites)
    with (sites / "hungary.toml").open("a") as file:
        file.write('\n[engine]\nprecision = "bfloat16"\n')
    run(job(), tmp_path / "run", "vectorised", partition=str(sites), waived=True)
    assert len(stacked) == 3
    assert set(stacked) == {3}  # of four


def test_a_site_that_refuses_leaves_the_others_to_train_together(
    tmp_path: Path, stacked: list[int]
) -> None:
    sites = tmp_path / "sites"
    shutil.copytree(HEART, sites)
    strict = (sites / "hungary.toml").read_text().replace("max_rounds = 100", "max_rounds = 1")
    (sites / "hungary.toml").write_text(strict)

    history = run(job(), tmp_path / "run", "vectorised", partition=str(sites), waived=True)

    outcomes = [{s["outcome"] for s in line["sites"].values()} for line in history]
    assert outcomes == [{"result", "policy"}] * 3
    assert stacked == [3, 3, 3]


def test_private_sites_are_charged_each_for_itself_and_spend_what_they_spend_alone(
    tmp_path: Path, stacked: list[int]
) -> None:
    whole = load_job(HEART / "job.toml")
    noise = {"target_epsilon": None, "noise_multiplier": 5.0}
    private = whole.model_copy(update={"privacy": whole.privacy.model_copy(update=noise)})
    spent = []
    for engine in ("inline", "vectorised"):
        history = run(job(private), tmp_path / engine, engine, partition=str(HEART))
        assert all(s["outcome"] == "result" for line in history for s in line["sites"].values())
        spent.append(
            [[s["metrics"].get("epsilon") for s in line["sites"].values()] for line in history]
        )

    assert stacked == [4, 4, 4]
    assert spent[0] == spent[1]


def test_a_large_model_is_trained_alone_and_the_log_says_why(
    tmp_path: Path, stacked: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = job()
    options = whole.task.options | {"model": {"kind": "mlp", "hidden": [400, 400]}}
    large = whole.model_copy(
        update={"task": whole.task.model_copy(update={"options": options}), "rounds": 1}
    )

    (line,) = run(large, tmp_path / "run", "auto")

    assert stacked == []
    assert {site["outcome"] for site in line["sites"].values()} == {"result"}
    assert "more than 100,000" in capfd.readouterr().err


def test_many_sites_are_trained_in_groups_and_answer_in_order(
    tmp_path: Path, stacked: list[int]
) -> None:
    history = run(
        job().model_copy(update={"rounds": 1}), tmp_path, "vectorised", sites=70, partition="iid"
    )

    assert stacked == [32, 32, 6]
    assert len(history[0]["sites"]) == 70

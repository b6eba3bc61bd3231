"""`hanse simulate` on a pooled data set: partitions, engines, what is asked and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hanse.errors import JobError, QuorumError
from hanse.examples import example
from hanse.job import Job, load_job
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.simulate import SimulationRequest, run_simulation

DATA = example("heart") / "cleveland.csv"


def job(**changes: Any) -> Job:
    whole = load_job(example("heart") / "job-without-privacy.toml")
    strategy = whole.strategy.model_copy(update={"quorum": 1, **changes.pop("strategy", {})})
    evaluation = whole.evaluation.model_copy(update=changes.pop("evaluation", {}))
    simulation = whole.simulation.model_copy(update={"holdout": 0.2})
    return whole.model_copy(
        update={
            "rounds": 3,
            "strategy": strategy,
            "evaluation": evaluation,
            "simulation": simulation,
            **changes,
        }
    )


def run(job: Job, folder: Path, **request: Any) -> list[dict[str, Any]]:
    asked = {"data": DATA, "sites": 5, "partition": "iid", **request}
    run_simulation(job, SimulationRequest(**asked), folder)
    return read_history(folder)


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.5", "shards:2"])
def test_every_partition_makes_a_federation(partition: str, tmp_path: Path) -> None:
    history = run(job(), tmp_path, partition=partition)
    assert [line["outcome"] for line in history] == ["completed"] * 3
    assert len(history[-1]["sites"]) == 5
    weights = [site["weight"] for site in history[-1]["sites"].values()]
    assert sum(weights) == pytest.approx(304 * 0.8, abs=21)  # three standard deviations


def test_a_column_makes_a_site_of_each_value(tmp_path: Path) -> None:
    history = run(job(), tmp_path, partition="column:cp")
    assert len(history[-1]["sites"]) == 4


def test_the_engines_end_with_the_same_model_whatever_the_workers(tmp_path: Path) -> None:
    requests: dict[str, dict[str, Any]] = {
        "inline": {"engine": "inline"},
        "one": {"engine": "process", "workers": 1},
        "two": {"engine": "process", "workers": 2},
        "vectorised": {"engine": "vectorised"},
    }
    models = {}
    for name, request in requests.items():
        run(job(), tmp_path / name, **request)
        models[name] = load_model(tmp_path / name / "models" / "last.safetensors")
    for name, weight in models["inline"].items():
        assert torch.equal(weight, models["one"][name])
        assert torch.equal(weight, models["two"][name])
        assert torch.allclose(weight, models["vectorised"][name], rtol=1e-5, atol=1e-6)


def test_another_seed_is_another_partition(tmp_path: Path) -> None:
    losses = []
    for seed in (1, 2):
        history = run(job(seed=seed), tmp_path / str(seed))
        losses.append(history[-1]["federated"]["loss"])
    assert losses[0] != losses[1]


def test_sites_are_not_asked_to_evaluate_where_the_job_does_not_want_it(tmp_path: Path) -> None:
    history = run(job(evaluation={"federated": False}), tmp_path)
    assert all(line["federated"] == {} for line in history)
    asked = run(job(), tmp_path, overwrite=True)
    assert asked[-1]["federated"]["loss"] > 0
    assert history[-1]["bytes_down"] < asked[-1]["bytes_down"]


def test_central_evaluation_is_due_as_often_as_the_job_says(tmp_path: Path) -> None:
    history = run(job(evaluation={"central": DATA, "every": 2, "federated": False}), tmp_path)
    assert [bool(line["central"]) for line in history] == [False, True, True]
    statement = json.loads((tmp_path / "models" / "best.json").read_text())
    assert statement["metrics"]["central"]["accuracy"] > 0.5


def test_a_part_of_the_sites_is_asked_and_none_is_forgotten(tmp_path: Path) -> None:
    history = run(job(rounds=8, strategy={"fraction": 0.4}), tmp_path)
    assert {len(line["sites"]) for line in history} == {2}
    assert len({name for line in history for name in line["sites"]}) == 5


def test_a_quorum_that_is_never_met_ends_the_run_and_says_why(tmp_path: Path) -> None:
    private = load_job(example("heart") / "job.toml")
    greedy = private.model_copy(
        update={
            "rounds": 30,
            "privacy": private.privacy.model_copy(
                update={"target_epsilon": None, "noise_multiplier": 5.0}
            ),
        }
    )
    with pytest.raises(QuorumError, match="budget"):
        run(greedy, tmp_path, partition=str(example("heart")))
    history = read_history(tmp_path)
    assert [line["outcome"] for line in history][-3:] == ["missed_quorum"] * 3
    assert history[0]["outcome"] == "completed"
    kept = load_model(tmp_path / "models" / "last.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in kept.values())


def test_epsilon_of_a_simulation_composes(tmp_path: Path) -> None:
    private = load_job(example("heart") / "job.toml")
    history = run(private, tmp_path, partition=str(example("heart")))
    spent = [line["sites"]["cleveland"]["metrics"]["epsilon"] for line in history]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(3.0, abs=0.02)
    assert spent[-1] <= 3.0


def test_an_unknown_engine_or_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="engine"):
        run(job(), tmp_path / "a", engine="warp")
    with pytest.raises(JobError, match="pooled data set"):
        run(job(), tmp_path / "b", data=None)


def test_a_crash_before_the_checkpoint_leaves_no_round_twice_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hanse.metrics import new_registry
    from hanse.simulation import SimulatedSites
    from hanse_server import checkpoint
    from hanse_server.metrics import ServerMetrics
    from hanse_server.simulation import simulate
    from hanse_server.simulation.sites import sites_of_folder
    from hanse_server.workspace import Workspace

    sites: SimulatedSites = sites_of_folder(example("heart")).model_copy(update={"waived": True})

    def start() -> None:
        simulate(job(), sites, Workspace(tmp_path, job()), ServerMetrics(new_registry()))

    save = checkpoint.save
    for doomed in (1, 2):
        with monkeypatch.context() as patched:

            def crash(folder: Path, made: checkpoint.Checkpoint, at: int = doomed) -> None:
                if made.progress.round == at:
                    raise KeyboardInterrupt
                save(folder, made)

            patched.setattr(checkpoint, "save", crash)
            with pytest.raises(KeyboardInterrupt):
                start()
        assert [line["round"] for line in read_history(tmp_path)] == list(range(1, doomed + 1))
    start()
    assert [line["round"] for line in read_history(tmp_path)] == [1, 2, 3]


def test_a_worker_that_dies_costs_its_message_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hanse_server.simulation.process import ProcessEngine

    started: list[ProcessEngine] = []
    collect = ProcessEngine._collect

    def collect_after_a_kill(engine: ProcessEngine, worker: Any) -> Any:
        if not started:
            started.append(engine)
            worker.process.kill()
            worker.process.join()
            while worker.pipe.connection.poll():  # what it had said before it died is lost too
                try:
                    worker.pipe.connection.recv_bytes()
                except EOFError:
                    break
        return collect(engine, worker)

    monkeypatch.setattr(ProcessEngine, "_collect", collect_after_a_kill)
    history = run(job(), tmp_path, engine="process", workers=2)
    outcomes = [site["outcome"] for site in history[0]["sites"].values()]
    assert sorted(outcomes) == ["client_app", *["result"] * 4]
    assert all(site["outcome"] == "result" for site in history[1]["sites"].values())


@pytest.mark.parametrize("engine", ["inline", "process"])
@pytest.mark.parametrize("strategy", [{"goal": 2}, {"name": "FedBuff", "goal": 2}])
def test_rounds_that_close_early_leave_the_engine_fit_for_the_next(
    tmp_path: Path, engine: str, strategy: dict[str, Any]
) -> None:
    history = run(job(rounds=4, strategy=strategy), tmp_path, engine=engine, workers=2)
    results = [
        [name for name, site in line["sites"].items() if site["outcome"] == "result"]
        for line in history
    ]
    assert [len(names) for names in results] == [2, 2, 2, 2]
    assert all(line["federated"]["loss"] > 0 for line in history if line["judged"])
    if strategy.get("name") == "FedBuff":
        assert set(results[0] + results[1] + results[2]) == set(history[0]["sites"])


def test_an_asynchronous_run_is_the_same_twice(tmp_path: Path) -> None:
    asynchronous = job(rounds=6, strategy={"name": "FedBuff", "goal": 2})
    models = []
    for name in ("a", "b"):
        run(asynchronous, tmp_path / name)
        models.append(load_model(tmp_path / name / "models" / "last.safetensors"))
    first, second = models
    assert all(torch.equal(first[name], second[name]) for name in first)

"""The statement beside a model: every site that took part, and all that it gave away."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hanse.examples import example
from hanse.job import Evaluation, Job, load_job
from hanse.metrics import new_registry
from hanse.privacy.accounting import Charge, epsilon
from hanse.simulation import SimulatedSites
from hanse_server.history import RoundRecord, read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.simulation import simulate
from hanse_server.simulation.sites import sites_of_folder
from hanse_server.workspace import Workspace


def job(fraction: float) -> Job:
    whole = load_job(example("heart") / "job.toml")
    strategy = whole.strategy.model_copy(update={"quorum": 1, "available": 4, "fraction": fraction})
    privacy = whole.privacy.model_copy(update={"target_epsilon": None, "noise_multiplier": 20.0})
    return whole.model_copy(update={"rounds": 4, "strategy": strategy, "privacy": privacy})


def run(
    folder: Path,
    sites: SimulatedSites | None = None,
    *,
    fraction: float = 0.5,
    stop_after: int | None = None,
) -> None:
    def interrupt(record: RoundRecord) -> None:
        if record.round == stop_after:
            raise KeyboardInterrupt

    asked, sites = job(fraction), sites or sites_of_folder(example("heart"))
    metrics = ServerMetrics(new_registry())
    simulate(asked, sites, Workspace(folder, asked), metrics, on_round=interrupt)


def test_sites_of_earlier_rounds_are_in_the_models_statement(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=3)
    run(tmp_path)
    history = read_history(tmp_path)
    last = {name: line["sites"][name] for line in history for name in line["sites"]}
    assert set(last) > set(history[-1]["sites"])
    stated = statement(tmp_path)["sites"]
    assert {name: site["data_set"]["epsilon"] for name, site in stated.items()} == {
        name: site["metrics"]["epsilon"] for name, site in last.items()
    }
    asked = [name for line in history for name in line["sites"]]
    assert {name: site["counted"] for name, site in stated.items()} == Counter(asked)
    for name, site in stated.items():
        rounds = Charge(noise_multiplier=20.0, sampling_rate=1.0, steps=asked.count(name))
        assert site["run"]["epsilon"] == pytest.approx(epsilon([rounds], 1e-5))
        # The ledger in memory saw this run alone, from the interruption on.
        assert site["data_set"]["epsilon"] <= site["run"]["epsilon"] + 1e-9


def test_what_leaves_exactly_is_said_to_be_outside_epsilon(tmp_path: Path) -> None:
    run(tmp_path)
    for site in statement(tmp_path)["sites"].values():
        names = [each["name"] for each in site["disclosures"] if each["kind"] == "exact"]
        assert len(names) == len(site["disclosures"])
        assert {*names} - {"auc"} == {"accuracy", "loss"}  # no auc where one class is held out
        told = f"As they are, outside epsilon, it released {', '.join(names)} of held-out records."
        assert told in site["sentence"]
        assert site["count"] == "declared"


def test_noised_evaluations_are_in_the_epsilon_of_the_run_and_of_the_ledger(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "hospitals"
    shutil.copytree(example("heart"), folder)
    for file in sites_of_folder(folder).files:
        text = re.sub(r"(?m)^release_exact = .*$", "", file.read_text())
        file.write_text(text.replace("release = [", 'release = ["accuracy", "loss", '))
    run(tmp_path / "run", sites_of_folder(folder), fraction=1.0)
    history = read_history(tmp_path / "run")
    assert set(history[-1]["federated"]) == {"accuracy", "loss"}
    for site in statement(tmp_path / "run")["sites"].values():
        charges = [
            Charge(noise_multiplier=20.0, sampling_rate=1.0, steps=4),
            Charge(noise_multiplier=50.0, sampling_rate=1.0, steps=4),
        ]
        assert site["run"]["epsilon"] == pytest.approx(epsilon(charges, 1e-5))
        assert site["data_set"]["epsilon"] == pytest.approx(site["run"]["epsilon"])
        assert site["data_set"]["complete"]
        assert {(each["name"], each["noise_multiplier"]) for each in site["disclosures"]} == {
            ("accuracy", 50.0),
            ("loss", 50.0),
        }
        assert "With noise, within its epsilon, it also released accuracy" in site["sentence"]


def test_a_model_without_privacy_says_so_loudly(tmp_path: Path) -> None:
    plain = load_job(example("heart") / "job-without-privacy.toml").model_copy(
        update={"rounds": 1, "evaluation": Evaluation(federated=False)}
    )
    sites = sites_of_folder(example("heart")).model_copy(update={"waived": True})
    simulate(plain, sites, Workspace(tmp_path, plain), ServerMetrics(new_registry()))
    stated = statement(tmp_path)
    assert not stated["private"]
    assert "Nothing bounds" in stated["statement"]
    for site in stated["sites"].values():
        assert site["run"] is None
        assert "nothing bounds" in site["sentence"]


def statement(folder: Path) -> dict[str, Any]:
    """On privacy, of the last model."""
    stated: dict[str, Any] = json.loads((folder / "models" / "last.json").read_text())["privacy"]
    return stated

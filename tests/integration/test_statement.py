"""The statement beside a model names every site that took part, not only the last round's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hanse.examples import example
from hanse.job import Job, load_job
from hanse.metrics import new_registry
from hanse_server.metrics import ServerMetrics
from hanse_server.simulation import simulate
from hanse_server.simulation.sites import sites_of_folder
from hanse_server.workspace import RoundRecord, Workspace, read_history


def job() -> Job:
    whole = load_job(example("heart") / "job.toml")
    strategy = whole.strategy.model_copy(update={"quorum": 1, "available": 4, "fraction": 0.5})
    privacy = whole.privacy.model_copy(update={"target_epsilon": None, "noise_multiplier": 20.0})
    return whole.model_copy(update={"rounds": 4, "strategy": strategy, "privacy": privacy})


def run(folder: Path, *, stop_after: int | None = None) -> None:
    def interrupt(record: RoundRecord) -> None:
        if record.round == stop_after:
            raise KeyboardInterrupt

    sites = sites_of_folder(example("heart"))
    simulate(job(), sites, Workspace(folder, job()), ServerMetrics(new_registry()),
             on_round=interrupt)  # fmt: skip


def test_sites_of_earlier_rounds_are_in_the_models_statement(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=3)
    run(tmp_path)
    history = read_history(tmp_path)
    last = {name: line["sites"][name] for line in history for name in line["sites"]}
    assert set(last) > set(history[-1]["sites"])
    stated = json.loads((tmp_path / "models" / "last.json").read_text())["privacy"]["sites"]
    assert {name: site["epsilon"] for name, site in stated.items()} == {
        name: site["metrics"]["epsilon"] for name, site in last.items()
    }

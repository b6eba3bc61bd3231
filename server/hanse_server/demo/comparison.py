"""What the federation gained: its model beside those that could be had without it."""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hanse.config import validate
from hanse.errors import SiteFileError
from hanse.evaluation import evaluate
from hanse.job import Job, load_job
from hanse.metrics import new_registry
from hanse.records import Data, concatenate, read_records
from hanse.simulation import SimulatedSites
from hanse.task import Examples, load_task

from hanse_server.checkpoint import load_model
from hanse_server.durable import write_file
from hanse_server.metrics import ServerMetrics
from hanse_server.simulation import simulate
from hanse_server.workspace import Workspace

NOTE = (
    "Judged on the held-out patients of all hospitals together; none of them was trained on. The "
    "curves show the mean of the hospitals' own figures, which differs, AUC most of all. "
    "All models but the private federation's come from simulations in which one machine holds "
    "all records, and train without privacy."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of a comparison, judged on the held-out records of all sites together.

    Attributes:
        epsilon: spent at the site that spent most; None for a model without privacy.
    """

    model: str
    accuracy: float
    auc: float
    loss: float
    epsilon: float | None = None


class Judge:
    """Judges models on the held-out records of all sites together.

    Args:
        holdout_seed: in place of that of the site files.
    """

    def __init__(
        self, job: Job, files: Mapping[str, Path], holdout_seed: int | None = None
    ) -> None:
        self._task = load_task(job.task.name, job.task.options)
        self._model = self._task.model()
        self._examples = concatenate(
            [self._held_out(file, holdout_seed) for file in files.values()]
        )

    def _held_out(self, file: Path, holdout_seed: int | None) -> Examples:
        table = tomllib.loads(file.read_text(encoding="utf-8"))["data"]
        if holdout_seed is not None:
            table["holdout_seed"] = holdout_seed
        data = validate(table, Data, SiteFileError, where=file.name).below(file.parent)
        held_out = read_records(self._task, data).held_out
        if held_out is None:
            raise SiteFileError(f"{file.name}: data.holdout = 0: nothing to judge models by")
        return held_out

    def row(self, name: str, model: Path, epsilon: float | None = None) -> Row:
        """The row of the model in a safetensors file."""
        self._model.load_state_dict(load_model(model))
        found = evaluate(self._task, self._model, self._examples, torch.device("cpu"))
        return Row(
            model=name,
            accuracy=found["accuracy"],
            auc=found["auc"],
            loss=found["loss"],
            epsilon=epsilon,
        )


def baselines(
    job_file: Path, files: Mapping[str, Path], judge: Judge, holdout_seed: int | None = None
) -> list[Row]:
    """The federation without privacy, the pooled records, and each site alone."""
    job = load_job(job_file)
    everyone = SimulatedSites(
        names=tuple(files), files=tuple(files.values()), holdout_seed=holdout_seed, waived=True
    )
    rows = [trained(job, everyone, judge, "federation, without privacy")]
    pooled = everyone.model_copy(update={"names": ("pooled",), "pooled": True})
    rows.append(trained(_for_all_records(job), pooled, judge, "all records pooled"))
    for name, file in files.items():
        alone = everyone.model_copy(update={"names": (name,), "files": (file,)})
        rows.append(trained(job, alone, judge, f"{name} alone"))
    return rows


def trained(
    job: Job, sites: SimulatedSites, judge: Judge, name: str, *, epsilon: float | None = None
) -> Row:
    """Simulate ``job`` with ``sites``, and judge the model that comes of it."""
    quorum = job.strategy.model_copy(update={"quorum": len(sites.names)})
    unjudged = job.evaluation.model_copy(update={"federated": False, "central": None})
    job = job.model_copy(update={"strategy": quorum, "evaluation": unjudged})
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), job)
        simulate(job, sites, workspace, ServerMetrics(new_registry()))
        return judge.row(name, workspace.models / "last.safetensors", epsilon)


def _for_all_records(job: Job) -> Job:
    """The job with batches that hold the records of all sites."""
    training = job.training.model_copy(update={"batch_size": 1_000_000})
    return job.model_copy(update={"training": training})


def write_comparison(workspace: Path, rows: list[Row]) -> None:
    """Leave the comparison where the report looks for it."""
    told: dict[str, Any] = {"rows": [asdict(row) for row in rows], "note": NOTE}
    write_file(workspace / "comparison.json", json.dumps(told, indent=2).encode())

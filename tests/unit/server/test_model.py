"""Where a run's model begins, and how the server judges it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hanse.errors import JobError, WorkspaceError
from hanse.examples import example
from hanse.flower import to_record
from hanse.job import Job, load_job
from hanse.task import load_task
from hanse_server.checkpoint import save_tensors
from hanse_server.model import CentralJudge, initial_weights


def job(**changes: object) -> Job:
    whole = load_job(example("mnist") / "job.toml")
    return whole.model_copy(update=changes)


def test_fresh_weights_are_a_function_of_the_seed_alone() -> None:
    task = load_task(job().task.name, job().task.options)
    first = initial_weights(task, job(seed=1))
    torch.rand(3)  # torch's own generator moves on
    again, other = initial_weights(task, job(seed=1)), initial_weights(task, job(seed=2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_weights_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    task = load_task(job().task.name, job().task.options)
    given = initial_weights(task, job(seed=7))
    save_tensors(given, tmp_path / "start.safetensors")
    taken = initial_weights(task, job(initial_weights=tmp_path / "start.safetensors"))
    assert all(torch.equal(given[name], taken[name]) for name in given)


def test_weights_that_do_not_fit_or_cannot_be_read_are_told(tmp_path: Path) -> None:
    task = load_task(job().task.name, job().task.options)
    save_tensors({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(JobError, match="initial_weights do not fit"):
        initial_weights(task, job(initial_weights=tmp_path / "other.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WorkspaceError, match="cannot be read"):
        initial_weights(task, job(initial_weights=tmp_path / "broken.safetensors"))


def test_the_server_judges_on_its_own_records_where_the_job_names_some() -> None:
    heart = load_job(example("heart") / "job.toml")
    task = load_task(heart.task.name, heart.task.options)
    arrays = to_record(initial_weights(task, heart))
    assert CentralJudge(task, heart)(arrays) == {}
    records = example("heart") / "hungary.csv"
    evaluation = heart.evaluation.model_copy(update={"central": records})
    judged = CentralJudge(task, heart.model_copy(update={"evaluation": evaluation}))(arrays)
    assert judged["loss"] == pytest.approx(0.6931, abs=1e-3)  # of a linear model of zeros: log 2

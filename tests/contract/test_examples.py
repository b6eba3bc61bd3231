"""The examples that ship: their files hold together and ask of each other what each allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hanse.errors import NonFiniteDataError
from hanse.job import load_job
from hanse.privacy.calibration import calibrate_noise
from hanse.task import AnyTask, load_task
from hanse.taskcheck import check_task
from hanse_client.site import load_site

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
HEART = EXAMPLES / "heart"
HOSPITALS = {"cleveland": 304, "hungary": 293, "switzerland": 123, "va-long-beach": 200}
JOBS = sorted(EXAMPLES.glob("*/job*.toml"))


def heart() -> AnyTask:
    job = load_job(HEART / "job.toml")
    return load_task(job.task.name, job.task.options)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_job_loads_with_its_task(path: Path) -> None:
    job = load_job(path)
    assert load_task(job.task.name, job.task.options).model()


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_the_task_reads_and_fits_each_hospital(hospital: str) -> None:
    job, site = load_job(HEART / "job.toml"), load_site(HEART / f"{hospital}.toml")
    findings = check_task(job.task.name, job.task.options, site.data.train)
    assert [finding for finding in findings if not finding.ok] == []
    assert len(heart().read(site.data.train)) == HOSPITALS[hospital]


def test_the_encoding_is_bounded_and_switzerland_has_no_cholesterol() -> None:
    names = list(load_job(HEART / "job.toml").task.options["columns"])
    task = heart()
    widths = [column.width for column in task.options.columns.values()]  # type: ignore[attr-defined]
    flag = sum(widths[: names.index("chol") + 1]) - 1
    for hospital in HOSPITALS:
        inputs = task.read(HEART / f"{hospital}.csv").inputs[0]
        assert inputs.abs().max() <= 1
        assert bool(inputs[:, flag].all()) == (hospital == "switzerland")


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_each_hospital_allows_the_job_and_its_budget_covers_it(hospital: str) -> None:
    job, site = load_job(HEART / "job.toml"), load_site(HEART / f"{hospital}.toml")
    privacy, policy = job.privacy, site.policy
    assert site.name == hospital
    assert job.task.name in {task.name for task in policy.tasks}
    assert (job.training.steps or 0) <= policy.max_steps
    assert job.rounds <= policy.max_rounds
    assert privacy.clipping_norm <= policy.max_clipping_norm
    assert privacy.target_epsilon == site.budget.epsilon == 3.0
    assert privacy.delta == site.budget.delta == 1e-5
    noise = calibrate_noise(3.0, privacy.delta, 1.0, job.rounds)
    assert noise >= policy.min_noise_multiplier
    assert not policy.allow_training_without_privacy


def test_the_jobs_with_and_without_privacy_differ_in_nothing_else() -> None:
    private, plain = load_job(HEART / "job.toml"), load_job(HEART / "job-without-privacy.toml")
    assert private.privacy.private
    assert not plain.privacy.private
    assert private.model_copy(update={"privacy": plain.privacy, "name": plain.name}) == plain


def test_a_batch_holds_all_that_a_hospital_trains_on() -> None:
    job = load_job(HEART / "job-without-privacy.toml")
    for hospital, records in HOSPITALS.items():
        held_out = round(records * load_site(HEART / f"{hospital}.toml").data.holdout)
        assert records - held_out <= job.training.batch_size


def test_a_damaged_export_is_refused_by_column(tmp_path: Path) -> None:
    lines = (HEART / "cleveland.csv").read_text().splitlines()
    cells = lines[1].split(",")
    cells[0] = ""
    (tmp_path / "export.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    with pytest.raises(NonFiniteDataError, match=r"export\.csv: column age: 1 of 304"):
        heart().read(tmp_path / "export.csv")


def test_the_models_learn_at_all() -> None:
    examples = heart().read(HEART / "cleveland.csv")
    task = heart()
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model(*examples.inputs), examples.targets).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert task.metrics(model(*examples.inputs), examples.targets)["accuracy"] > 0.8

"""job.toml: what validates, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanse.errors import JobError
from hanse.job import Evaluation, Job, load_job

JOB = """
name = "trial"
rounds = 3
[task]
name = "tabular"
[training]
steps = 2
[privacy]
noise_multiplier = 1.0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_a_job_loads_with_defaults(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, JOB))
    assert (job.rounds, job.training.steps, job.strategy.name) == (3, 2, "StreamingFedAvg")
    assert job.privacy.private


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("rounds = 3", "rounds = 0"), "rounds = 0: "),
        (("rounds = 3", "round = 3"), "round: unknown key (did you mean rounds?)"),
        (("steps = 2", "stepss = 2"), "training.stepss: unknown key (did you mean steps?)"),
        (("steps = 2", "steps = 2\nepochs = 1"), "training: give either steps or epochs"),
        (("noise_multiplier = 1.0", ""), "privacy: give either noise_multiplier or target"),
        (("noise_multiplier = 1.0", "noise_multiplier = -1"), "privacy.noise_multiplier = -1"),
        (("noise_multiplier = 1.0", "noise_multiplier = nan"), "noise_multiplier = nan"),
        (("noise_multiplier = 1.0", 'mechanism = "none"\ntarget_epsilon = 1'), "takes no"),
        (('name = "trial"', ""), "name: missing"),
        (('name = "trial"', 'name = "../trial"'), "name = '../trial'"),
        (("rounds = 3", "rounds = "), "not valid TOML"),
    ],
)
def test_a_mistake_is_told_by_file_key_and_value(
    tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, JOB.replace(*change)))
    assert told in caught.value.message
    assert "job.toml" in caught.value.message


def test_a_job_without_a_privacy_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="privacy: missing"):
        load_job(write(tmp_path, JOB.partition("[privacy]")[0]))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such file"):
        load_job(tmp_path / "job.toml")


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, 'initial_weights = "w.safetensors"\n' + JOB))
    assert job.initial_weights == tmp_path / "w.safetensors"


def test_the_digest_is_of_what_a_site_is_told(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, JOB))
    told = Job.model_validate_json(job.instruction)
    assert told.instruction == job.instruction
    assert "strategy" not in job.instruction
    more_noise = JOB.replace("noise_multiplier = 1.0", "noise_multiplier = 2.0")
    assert load_job(write(tmp_path, more_noise)).digest != job.digest
    same_work = JOB + '[strategy]\nname = "FedAdam"\n'
    assert load_job(write(tmp_path, same_work)).digest == job.digest


@pytest.mark.parametrize(
    ("evaluation", "rounds", "judged"),
    [
        ({}, 3, 3),
        ({"every": 2}, 3, 2),
        ({"every": 5}, 40, 8),
        ({"every": 7}, 40, 6),
        ({"federated": False}, 3, 0),
    ],
)
def test_a_site_is_told_how_often_it_will_judge(
    evaluation: dict[str, int], rounds: int, judged: int
) -> None:
    every, last = evaluation.get("every", 1), rounds
    due = [n for n in range(1, rounds + 1) if n % every == 0 or n == last]
    assert Evaluation(**evaluation).rounds_judged_by_sites(rounds) == judged
    assert judged in (0, len(due))


def test_a_site_is_not_told_by_what_models_are_chosen(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, JOB + '[evaluation]\nevery = 2\nselect = "-brier"\n'))
    told = Job.model_validate_json(job.instruction)
    assert told.evaluation.every == 2
    assert "brier" not in job.instruction

"""`hanse simulate` refuses at once what cannot come about, and leaves nothing half-done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hanse.errors import JobError, WorkspaceError
from hanse.examples import example
from hanse.job import Job, load_job
from hanse_server.history import read_history
from hanse_server.simulate import SimulationRequest, run_simulation

HEART = example("heart")
JOB = load_job(HEART / "job-without-privacy.toml").model_copy(update={"rounds": 1})


def simulate(folder: Path, job: Job = JOB, **request: Any) -> list[dict[str, Any]]:
    asked = {"data": HEART / "cleveland.csv", "sites": 4, "partition": "iid", **request}
    run_simulation(job, SimulationRequest(**asked), folder)
    return read_history(folder)


def test_a_quorum_that_no_site_can_fill_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"asks for 4 sites .* has 3"):
        simulate(tmp_path, sites=3)


@pytest.mark.parametrize("wrong", [{"sites": 3}, {"partition": "nosuch"}, {"engine": "warp"}])
def test_after_a_refusal_the_workspace_is_still_free(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(JobError):
        simulate(tmp_path, **wrong)

    assert len(simulate(tmp_path)) == 1


def test_a_run_is_replaced_only_if_asked(tmp_path: Path) -> None:
    simulate(tmp_path)

    with pytest.raises(WorkspaceError, match="holds a run already"):
        simulate(tmp_path)

    assert len(simulate(tmp_path, overwrite=True)) == 1


def test_sites_that_hold_nothing_back_are_not_asked_to_judge(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (line,) = simulate(tmp_path)

    assert line["outcome"] == "completed"
    assert line["federated"] == {}
    told = capfd.readouterr().err
    assert "--holdout" in told
    assert "refused" not in told

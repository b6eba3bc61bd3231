"""The batches that training takes are a coin for each record, at the rate that is charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hanse.job import Job
from hanse.task import Examples, NoOptions, Task
from hanse_client.plan import LocalPlan, plan_round
from hanse_client.privacy.engine import DpEngine
from hanse_client.steps import Outcome
from hanse_client.training import Trainer
from torch import Tensor, nn

RECORDS, BATCH, STEPS = 90, 20, 1500


class Named(Task[NoOptions]):
    """Records that can be told from one another by their only feature."""

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def read(self, source: Path) -> Examples:
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0]

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def a_plan() -> LocalPlan:
    """A round of a job that leaves the rate to the site: 20 of 90 records."""
    job = Job.model_validate(
        {
            "name": "named",
            "rounds": 1,
            "task": {"name": "x:Y"},
            "training": {"steps": STEPS, "batch_size": BATCH},
            "privacy": {"noise_multiplier": 1.0},
        }
    )
    return plan_round(job, 1, RECORDS, site="a")


def drawn(patch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """Which records each step of a round of training got, (steps, records) of 0 and 1."""
    steps: list[np.ndarray[Any, Any]] = []

    def note(self: DpEngine, batch: Examples) -> Outcome:
        steps.append(np.bincount(batch.inputs[0][:, 0].long().numpy(), minlength=RECORDS))
        return Outcome(records=len(batch), losses=torch.zeros(len(batch)))

    patch.setattr(DpEngine, "__call__", note)
    examples = Examples((torch.arange(RECORDS).float()[:, None],), torch.zeros(RECORDS))
    trainer = Trainer(Named(NoOptions()), torch.device("cpu"))
    start = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    trainer.train(start, examples, a_plan())
    return np.array(steps)


def test_a_round_draws_each_record_at_each_step_on_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rate = BATCH / RECORDS
    table = drawn(monkeypatch)
    assert table.shape == (STEPS, RECORDS)
    assert table.max() == 1
    one = (rate * (1 - rate)) ** 0.5
    assert abs(table.mean() - rate) < 6 * one * table.size**-0.5
    sizes = table.sum(axis=1)
    assert sizes.var() == pytest.approx(RECORDS * rate * (1 - rate), rel=6 * (2 / STEPS) ** 0.5)
    times = table.sum(axis=0)
    assert times.var() == pytest.approx(STEPS * rate * (1 - rate), rel=6 * (2 / RECORDS) ** 0.5)

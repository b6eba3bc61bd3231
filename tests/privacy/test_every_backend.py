"""Training by each backend, with each loss that a job can name, keeps what a step promises."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from hanse.job import Optimizer
from hanse.task import Examples, NoOptions, Task
from hanse_client.plan import LocalPlan, PrivateSteps
from hanse_client.privacy.backends import BACKENDS
from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.settings import BackendName, EngineSettings
from hanse_client.steps import record_loss, trainable
from hanse_client.training import Trainer
from torch import Tensor, nn

LossName = Literal["task", "cross_entropy", "mse"]
LOSSES: tuple[LossName, ...] = ("task", "cross_entropy", "mse")
RECORDS, BATCH = 9, 4
NORM = 5.0  # some gradients are larger and some are not


class Small(Task[NoOptions]):
    """A convolution, norms and a linear layer; a loss of its own."""

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(),
            nn.Flatten(), nn.LayerNorm(24), nn.Linear(24, 3),
        )  # fmt: skip

    def read(self, source: Path) -> Examples:
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets[:, None]).abs().sum(dim=1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def records(loss: LossName) -> Examples:
    """The targets of regression differ by far in size, and so do the gradients."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(RECORDS, 8, generator=generator)
    targets = torch.randint(0, 3, (RECORDS,), generator=generator)
    if loss == "mse":
        sizes = torch.logspace(-2, 1, RECORDS)[:, None]
        return Examples((inputs,), sizes * torch.randn(RECORDS, 3, generator=generator))
    return Examples((inputs,), targets)


def start() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Small(NoOptions()).model().state_dict()


def moved(backend: BackendName, loss: LossName, examples: Examples) -> Tensor:
    """The sum of clipped gradients that a step on all ``examples`` took, all but without noise."""
    plan = LocalPlan(
        steps=1,
        batch_size=BATCH,
        privacy=PrivateSteps(sampling_rate=1.0, noise_multiplier=1e-9, clipping_norm=NORM),
        optimizer=Optimizer(),
        lr=1.0,
        loss=loss,
        augment=False,
        proximal_mu=0.0,
        seed=1,
    )
    trainer = Trainer(
        Small(NoOptions()), torch.device("cpu"), engine=EngineSettings(backend=backend)
    )
    result = trainer.train(start(), examples, plan)
    assert result.backend == backend
    return -BATCH * torch.cat([change.flatten() for change in result.update.values()])


def without(examples: Examples, removed: int) -> Examples:
    return examples.take(torch.tensor([i for i in range(len(examples)) if i != removed]))


def one_by_one(loss: LossName, examples: Examples) -> Tensor:
    """The gradient of each record, (B, P), each from a backward pass of its own."""
    task = Small(NoOptions())
    model = task.model()
    model.load_state_dict(start())
    rows = []
    for i in range(len(examples)):
        one = examples.take(torch.tensor([i]))
        value = record_loss(loss, task)(model(*one.inputs), one.targets).sum()
        parts = torch.autograd.grad(value, trainable(model))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_out_one_record_moves_the_sum_by_the_clipping_norm_at_most(
    backend: BackendName, loss: LossName
) -> None:
    examples = records(loss)
    whole = moved(backend, loss, examples)
    differences = [
        float((whole - moved(backend, loss, without(examples, removed))).norm())
        for removed in range(RECORDS)
    ]
    assert max(differences) <= NORM
    assert max(differences) > 0.99 * NORM


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sum_is_that_of_a_loop_over_single_records(
    backend: BackendName, loss: LossName
) -> None:
    examples = records(loss)
    rows = one_by_one(loss, examples)
    expected = (Clipping(NORM).bound / rows.norm(dim=1)).clamp(max=1.0) @ rows
    found = moved(backend, loss, examples)
    assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())

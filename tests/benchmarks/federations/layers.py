"""A task whose model has the matrices of a case, one after another."""

from __future__ import annotations

from pathlib import Path

import torch
from hanse.config import Settings
from hanse.task import Examples, Task
from torch import Tensor, nn

from tests.benchmarks.federations.case import WIDTH, Case

RECORDS = 4


class Megabytes(Settings):
    """``[task.options]``."""

    megabytes: float = 0.39


class Layers(Task[Megabytes]):
    """As many numbers as the case has, from numbers that are drawn."""

    Options = Megabytes

    def model(self) -> nn.Module:
        shapes = Case(sites=1, megabytes=self.options.megabytes, rounds=1).shapes
        return nn.Sequential(*(nn.Linear(inside, out, bias=False) for out, inside in shapes))

    def read(self, source: Path) -> Examples:
        randomness = torch.Generator().manual_seed(0)
        numbers = torch.randn(RECORDS, WIDTH, generator=randomness)
        return Examples((numbers,), numbers[:, 0])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.mean(1) - targets).square()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"mae": float((outputs.mean(1) - targets).abs().mean())}

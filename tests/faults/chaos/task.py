"""The task that federations in chaos train: small or of some megabytes, and quick."""

from __future__ import annotations

from pathlib import Path

import torch
from hanse.config import Settings
from hanse.task import Examples, RecordMetric, Task
from pydantic import PositiveInt
from torch import Tensor, nn

RECORDS = 40
INPUTS = 4


class Size(Settings):
    """How wide the model is; its weights are ``4 * (6 * width + 1)`` bytes."""

    width: PositiveInt = 2


class Waves(Task[Size]):
    """Four numbers in, one out; a site's file holds the seed that its records are made from."""

    Options = Size

    def model(self) -> nn.Module:
        width = self.options.width
        return nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, 1))

    def read(self, source: Path) -> Examples:
        generator = torch.Generator().manual_seed(int(source.read_text()))
        inputs = torch.rand(RECORDS, INPUTS, generator=generator) * 2 - 1
        return Examples((inputs,), torch.sin(inputs.sum(dim=1, keepdim=True)))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().squeeze(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"mae": float((outputs - targets).abs().mean())}

    def record_metrics(self) -> dict[str, RecordMetric]:
        return {"mae": RecordMetric(values=lambda o, t: (o - t).abs().squeeze(1), bound=2.0)}

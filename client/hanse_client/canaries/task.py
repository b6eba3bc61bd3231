"""A task whose records each pull the model along one direction, and along no other's."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from hanse.config import Settings
from hanse.task import Examples, Task
from torch import Tensor, nn

STEEPNESS = 100.0
"""The norm of a record's gradient, in clipping norms: what is not clipped stands out."""


class CanaryOptions(Settings):
    """How many directions there are, and the norm of each record's gradient."""

    directions: int
    norm: float


class Canaries(Task[CanaryOptions]):
    """One-hot records: the gradient of record i is ``-norm`` along the direction ``inputs[i, 0]``.

    It is so whatever the weights, as the loss is linear in them. A direction is shared out
    evenly between a linear layer and an embedding, so that clipping each layer by itself lets
    through more than clipping the whole.
    """

    Options = CanaryOptions

    def model(self) -> nn.Module:
        return _Directions(self.options.directions)

    def read(self, source: Path) -> Examples:
        raise NotImplementedError("canaries are not read from files")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -self.options.norm / math.sqrt(2.0) * outputs

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


class _Directions(nn.Module):
    def __init__(self, directions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(directions, 1, bias=False)
        self.embedding = nn.Embedding(directions, 1)

    def forward(self, direction: Tensor) -> Tensor:
        """Indices of directions, (B, 1), to outputs, (B,)."""
        one_hot = nn.functional.one_hot(direction[:, 0], self.linear.in_features)
        linear: Tensor = self.linear(one_hot.to(self.linear.weight.dtype))
        embedded: Tensor = self.embedding(direction)
        return linear[:, 0] + embedded[:, 0, 0]


def records_along(directions: Tensor) -> Examples:
    """The records that pull along ``directions``, a vector of indices."""
    return Examples((directions[:, None],), torch.zeros(len(directions)))


def way_along(update: dict[str, Tensor]) -> Tensor:
    """How far an update of the model goes along each direction, float64 of shape (d,)."""
    both = update["linear.weight"][0].double() + update["embedding.weight"][:, 0].double()
    return both / math.sqrt(2.0)

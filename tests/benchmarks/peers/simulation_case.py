"""What the peers of the benchmark of simulations have in common: their case, model and clock.

It runs in a peer's environment, where there is no Hanse. The case is a JSON object, the command's
argument, as :mod:`tests.benchmarks.simulation` writes it.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn


class Normalize(nn.Module):
    """Bytes to floats."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - 0.13) / 0.31


def layers(model: dict[str, Any]) -> list[nn.Module]:
    """The layers of the case's model."""
    if model["kind"] == "mlp":
        return [Normalize(), nn.Flatten(), nn.Linear(784, 10)]
    first, second = model["channels"]
    (hidden,) = model["hidden"]
    return [
        *(Normalize(), nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(second * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    ]


@dataclass
class Case:
    """What is to be simulated.

    Attributes:
        images, labels: of each client, (clients, records, ...).
    """

    model: dict[str, Any]
    rounds: int
    cohort: int
    batch: int
    lr: float
    images: torch.Tensor
    labels: torch.Tensor
    began: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)

    def tell(self, started: float) -> None:
        """Print what was measured.

        Args:
            started: when the first round did.
        """
        first, last = self.ends[0], self.ends[-1]
        told = {
            "start": started - self.began,
            "first": first - started,
            "update": (last - first) / (len(self.ends) - 1) / self.cohort,
        }
        sys.stdout.write("\n" + json.dumps(told) + "\n")


def asked() -> Case:
    """The case of the command line."""
    torch.set_num_threads(1)
    case = json.loads(sys.argv[1])
    with np.load(case.pop("data")) as data:
        images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    return Case(images=images, labels=labels, **case)

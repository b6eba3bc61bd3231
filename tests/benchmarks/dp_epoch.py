"""An epoch of private training, feeding and noise included, against plain SGD.

Plain SGD is fed by torch's ``DataLoader``, private training by Poisson batches of indexed
tensors. Both compute in one thread; the noise of more than 131,072 weights is drawn in a second
one, while the step is under way. Seconds are the median of several epochs of each, one after the
other in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hanse.task import Examples
from hanse_client.plan import PrivateSteps
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.sampling import poisson_batches
from hanse_client.steps import PlainStep
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    model: str
    make: Callable[[], nn.Module]
    records: int
    shape: tuple[int, ...]
    epochs: int


CASES = [
    Case("MLP 784-128-10", mlp, 20_000, (784,), 9),
    Case("CNN 1.2 M", cnn, 4_000, (28, 28), 3),
]


def rows() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [row(case) for case in CASES]


def row(case: Case) -> dict[str, Any]:
    torch.manual_seed(0)
    examples = Examples(
        (torch.randn(case.records, *case.shape),), torch.randint(0, 10, (case.records,))
    )
    epochs = {"plain": plain(case.make(), examples), "hanse": private(case.make(), examples)}
    taken: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(case.epochs):
        for name, epoch in epochs.items():
            started = time.perf_counter()
            epoch()
            taken[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return {
        "model": case.model,
        "records": case.records,
        "batch": BATCH,
        **medians,
        "ratio": medians["hanse"] / medians["plain"],
    }


def plain(model: nn.Module, examples: Examples) -> Callable[[], None]:
    loader = DataLoader(
        TensorDataset(*examples.inputs, examples.targets), batch_size=BATCH, shuffle=True
    )
    step = PlainStep(model, cross_entropy, sgd(model), lambda: None)

    def epoch() -> None:
        for inputs, targets in loader:
            step(Examples((inputs,), targets))

    return epoch


def private(model: nn.Module, examples: Examples) -> Callable[[], None]:
    rate = BATCH / len(examples)
    privacy = PrivateSteps(sampling_rate=rate, noise_multiplier=1.0, clipping_norm=1.0)
    steps = -(-len(examples) // BATCH)

    def epoch() -> None:
        with DpEngine(
            model, cross_entropy, sgd(model), privacy, batch_size=BATCH, pull=lambda: None
        ) as engine:
            for indices in poisson_batches(len(examples), rate, steps):
                engine(examples.take(indices))

    return epoch


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")

"""Noise has the law that the accounting assumes, and no two draws of it have anything in common.

The bounds are exceeded by sound noise less than once in a million runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hanse.job import Optimizer
from hanse.task import Examples, NoOptions, Task
from hanse_client.plan import LocalPlan, PrivateSteps
from hanse_client.privacy import ahead
from hanse_client.privacy.ahead import NoiseAhead
from hanse_client.privacy.noise import SecureNoise
from hanse_client.training import Trainer
from torch import Tensor, nn

WEIGHTS = 140_000  # enough for noise to be drawn ahead


class Untouched(Task[NoOptions]):
    """A model that no record is drawn for: what moves it is noise."""

    def model(self) -> nn.Module:
        return nn.Linear(1, WEIGHTS, bias=False)

    def read(self, source: Path) -> Examples:
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean(dim=1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def a_site() -> Trainer:
    return Trainer(Untouched(NoOptions()), torch.device("cpu"))


def a_round(trainer: Trainer, *, steps: int = 1) -> Tensor:
    """What the noise of a round's steps adds up to, in standard deviations of one."""
    plan = LocalPlan(
        steps=steps,
        batch_size=1,
        privacy=PrivateSteps(sampling_rate=1e-12, noise_multiplier=2.0, clipping_norm=0.5),
        optimizer=Optimizer(),
        lr=1.0,
        loss="task",
        augment=False,
        proximal_mu=0.0,
        seed=1,
    )
    nobody = Examples((torch.zeros(3, 1),), torch.zeros(3))
    start = {"weight": torch.zeros(WEIGHTS, 1)}
    return trainer.train(start, nobody, plan).update["weight"].flatten().double()


def test_a_million_draws_have_the_moments_of_a_normal() -> None:
    draws, n = SecureNoise().standard_normals(10**6), 10**6
    assert abs(float(draws.mean())) < 6 * n**-0.5
    assert abs(float(draws.std()) - 1.0) < 6 * (2 * n) ** -0.5
    assert abs(float(draws.pow(4).mean()) - 3.0) < 6 * (96 / n) ** 0.5


def test_the_noise_of_a_round_has_the_deviation_of_its_charge_at_each_step() -> None:
    for steps in (1, 16):
        deviation = float(a_round(a_site(), steps=steps).std())
        assert deviation == pytest.approx(steps**0.5, rel=6 * (2 * WEIGHTS) ** -0.5)


def test_the_noise_of_rounds_and_sites_is_uncorrelated() -> None:
    one, other = a_site(), a_site()
    uncorrelated(a_round(one), a_round(one), a_round(other), a_round(one, steps=3))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_noise_of_processes_is_uncorrelated() -> None:
    source = SecureNoise()  # made before the fork: both processes hold its key
    children = [in_a_fork(lambda: source.standard_normals(WEIGHTS)) for _ in range(2)]
    uncorrelated(source.standard_normals(WEIGHTS), *children)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_noise_of_processes_is_uncorrelated_where_it_is_drawn_ahead() -> None:
    assert WEIGHTS >= ahead.WORTHWHILE
    noise = NoiseAhead(SecureNoise())

    def drawn() -> Tensor:
        noise.begin([WEIGHTS])
        return noise.standard_normals(WEIGHTS)

    before = drawn()
    noise.begin([WEIGHTS])  # the children have this on their hands, and not the threads
    children = [in_a_fork(drawn) for _ in range(2)]
    uncorrelated(before, noise.standard_normals(WEIGHTS), *children)


def uncorrelated(*draws: Tensor) -> None:
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert float(correlations.abs().max()) < 6 * WEIGHTS**-0.5


def in_a_fork(draw: Callable[[], Tensor]) -> Tensor:
    """What ``draw`` draws in a child of this process."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # those of the parent did not come along
            with os.fdopen(sending, "wb") as pipe:
                pipe.write(draw().numpy().tobytes())
        finally:
            os._exit(0)  # not the rest of the tests
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        drawn = bytearray(pipe.read())
    os.waitpid(child, 0)
    return torch.frombuffer(drawn, dtype=torch.float64)

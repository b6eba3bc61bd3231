"""Noise of another law, and noise that comes back."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from hanse_client.privacy.ahead import NoiseAhead
from hanse_client.privacy.noise import SecureNoise
from torch import Tensor

from tests.privacy import test_noise_statistics as statistics
from tests.privacy.planting import Bug, Ground

Draw = Callable[[SecureNoise, int], Tensor]
SOUND: Draw = SecureNoise.standard_normals


def drawn_by(draw: Draw) -> Callable[[Ground], None]:
    """Plants another way to draw."""
    return lambda ground: ground.patch.setattr(SecureNoise, "standard_normals", draw)


def scaled(factor: float) -> Callable[[Ground], None]:
    """Plants noise of another standard deviation."""
    return drawn_by(lambda self, count: factor * SOUND(self, count))


def uniform(self: SecureNoise, count: int) -> Tensor:
    """Of the right mean and standard deviation."""
    return (torch.rand(count, dtype=torch.float64) - 0.5) * 12**0.5


def fixed_key(ground: Ground) -> None:
    ground.patch.setattr(os, "urandom", bytes)


def reseeded(self: SecureNoise, count: int) -> Tensor:
    """A generator of the same seed for each draw."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, dtype=torch.float64, generator=generator)


def given_again(ground: Ground) -> None:
    """What was drawn ahead for a step is used in each one after it."""
    draw, given = NoiseAhead.standard_normals, dict[tuple[int, int], Tensor]()

    def again(self: NoiseAhead, count: int) -> Tensor:
        return given.setdefault((id(self), count), draw(self, count)).clone()

    ground.patch.setattr(NoiseAhead, "standard_normals", again)


def shared_with_children(ground: Ground) -> None:
    ground.patch.setattr(os, "getpid", lambda: 1)


BUGS = [
    Bug(
        name="the noise is halved",
        plant=scaled(0.5),
        guard=lambda ground: statistics.test_a_million_draws_have_the_moments_of_a_normal(),
    ),
    Bug(
        name="the noise is one part in a hundred too little",
        plant=scaled(0.99),
        guard=lambda ground: statistics.test_a_million_draws_have_the_moments_of_a_normal(),
    ),
    Bug(
        name="the noise is uniform",
        plant=drawn_by(uniform),
        guard=lambda ground: statistics.test_a_million_draws_have_the_moments_of_a_normal(),
    ),
    Bug(
        name="the key of the noise is fixed",
        plant=fixed_key,
        guard=lambda ground: statistics.test_the_noise_of_rounds_and_sites_is_uncorrelated(),
    ),
    Bug(
        name="the noise is seeded anew at each step",
        plant=drawn_by(reseeded),
        guard=lambda ground: (
            statistics.test_the_noise_of_a_round_has_the_deviation_of_its_charge_at_each_step()
        ),
    ),
    Bug(
        name="the noise drawn ahead is given to each step",
        plant=given_again,
        guard=lambda ground: (
            statistics.test_the_noise_of_a_round_has_the_deviation_of_its_charge_at_each_step()
        ),
    ),
    Bug(
        name="a forked process goes on with its parent's key",
        plant=shared_with_children,
        guard=lambda ground: statistics.test_the_noise_of_processes_is_uncorrelated(),
    ),
]

"""Checks that let through what cannot be proved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hanse_client import training
from hanse_client.privacy import checks
from hanse_client.privacy.checks import check_provable
from hanse_client.privacy.choice import Choice
from torch import nn

from tests.privacy.planting import Bug, Ground
from tests.unit.client import test_checks, test_training


def only_what_is_trained(ground: Ground) -> None:
    """A validator that passes over frozen layers, as Opacus' does."""

    def check(model: nn.Module) -> None:
        for module in model.modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                check_provable(module)

    ground.patch.setattr(test_checks, "check_provable", check)


def losses_that_couple(ground: Ground) -> None:
    for module in (training, test_checks):
        ground.patch.setattr(module, "check_per_example", lambda *_: None)
    untried = Choice(backend="hooks", reason="untried")
    ground.patch.setattr(training, "choose_backend", lambda *_: untried)


def half_precision(ground: Ground) -> None:
    ground.patch.setattr(checks, "_PRECISE", (torch.bfloat16, torch.float32, torch.float64))


def batch_statistics(layer: nn.Module) -> Callable[[Ground], None]:
    """That a model with this layer is refused."""
    refused = test_checks.test_layers_with_batch_statistics_are_refused_however_they_are_set
    return lambda _: refused(layer)


BUGS = [
    Bug(
        name="frozen layers with batch statistics pass",
        plant=only_what_is_trained,
        guard=lambda _: (
            test_checks.test_layers_with_batch_statistics_are_refused_however_they_are_set(
                test_checks.still(nn.BatchNorm1d(8))
            )
        ),
    ),
    Bug(
        name="layers with batch statistics and no weights pass",
        plant=only_what_is_trained,
        guard=lambda _: (
            test_checks.test_layers_with_batch_statistics_are_refused_however_they_are_set(
                nn.BatchNorm1d(8, affine=False)
            )
        ),
    ),
    Bug(
        name="weights in less than float32 pass",
        plant=half_precision,
        guard=lambda _: test_checks.test_low_precision_is_refused_where_it_is_trained(
            torch.bfloat16
        ),
    ),
    Bug(
        name="a class-weighted mean passes",
        plant=losses_that_couple,
        guard=lambda _: test_checks.test_losses_that_couple_records_are_refused(
            test_checks.weighted_mean
        ),
    ),
    Bug(
        name="training asks for no check of the loss",
        plant=losses_that_couple,
        guard=lambda ground: (
            test_training.test_what_cannot_be_proved_is_refused_before_any_record_is_touched(
                ground.patch
            )
        ),
    ),
]

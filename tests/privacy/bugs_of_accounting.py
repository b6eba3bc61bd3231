"""Accounts that come to less than what was spent."""

from __future__ import annotations

import dp_accounting
import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from hanse.privacy import accounting
from hanse.privacy.accounting import Charges
from numpy.typing import NDArray

from tests.privacy.planting import Bug, Ground
from tests.unit.shared import test_accounting

DIVERGENCES = accounting._one_step_divergences


def forget(ground: Ground) -> None:
    """Let nothing be remembered of accounts made before the bug."""
    ground.patch.setattr(accounting, "_epsilon", accounting._epsilon.__wrapped__)
    ground.patch.setattr(accounting, "_renyi", accounting._renyi.__wrapped__)


def halved_divergences(ground: Ground) -> None:
    forget(ground)
    ground.patch.setattr(
        accounting, "_one_step_divergences", lambda *mechanism: DIVERGENCES(*mechanism) / 2
    )


def negative_divergences(ground: Ground) -> None:
    """As rounding leaves them, to be taken for no loss at all."""

    def raw(noise_multiplier: float, sampling_rate: float) -> NDArray[np.float64]:
        event = dp_accounting.PoissonSampledDpEvent(
            sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
        )
        with accounting._quiet_accountant():
            return np.asarray(dp_accounting.rdp.RdpAccountant().compose(event).rdp)

    ground.patch.setattr(accounting, "_one_step_divergences", raw)
    forget(ground)


def steps_not_counted(ground: Ground) -> None:
    """The noise of one Gaussian stands for that of all of them."""
    ground.patch.setattr(accounting, "_gaussian_noise", lambda charges: charges[0].noise_multiplier)
    forget(ground)


def amplified_twice(ground: Ground) -> None:
    """A step's distribution at less than its sampling rate."""
    ground.patch.setattr(
        accounting,
        "_one_step_distribution",
        lambda noise, rate: pld.from_gaussian_mechanism(noise, sampling_prob=rate**1.1),
    )
    forget(ground)


def a_fresh_accountant_each_round(ground: Ground) -> None:
    def last(charges: Charges) -> Charges:
        return tuple(charges)[-1:]

    ground.patch.setattr(accounting, "merge", last)


BUGS = [
    Bug(
        name="divergences are halved",
        plant=halved_divergences,
        guard=lambda _: test_accounting.test_sampled_charges_cost_the_reference_figures(
            1.0, 0.01, 1000, 1.828
        ),
    ),
    Bug(
        name="a negative divergence is taken for no loss",
        plant=negative_divergences,
        guard=lambda _: (
            test_accounting.test_a_divergence_that_rounding_made_negative_costs_something()
        ),
    ),
    Bug(
        name="of unsampled steps one is counted",
        plant=steps_not_counted,
        guard=lambda _: test_accounting.test_unsampled_charges_cost_the_closed_form(4.0, 100, 1e-5),
    ),
    Bug(
        name="the sampling rate amplifies too much",
        plant=amplified_twice,
        guard=lambda _: test_accounting.test_sampled_charges_cost_the_reference_figures(
            1.0, 0.01, 1000, 1.828
        ),
    ),
    Bug(
        name="each round has an accountant of its own",
        plant=a_fresh_accountant_each_round,
        guard=lambda _: test_accounting.test_rounds_one_by_one_cost_exactly_one_run(),
    ),
]

"""Numbers that leave a site though nobody let them, or that nobody charged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hanse_client import noised
from hanse_client.release import Kind, Release
from hanse_client.site import Policy
from torch import Tensor

from tests.harbour import Harbour, site
from tests.privacy.planting import Bug, Ground
from tests.unit.client import test_egress, test_gates, test_noised, test_release

EGRESS = sys.modules["hanse_client.gates.egress"]
"""The module: its package has a function of the same name."""


def let_out_if(allowed: Callable[..., bool]) -> Callable[[Ground], None]:
    """Plants another rule of what may leave."""

    def plant(ground: Ground) -> None:
        for module in (EGRESS, test_release):
            ground.patch.setattr(module, "may_leave", allowed)

    return plant


def anything(policy: Policy, name: str, kind: Kind, *, protected: bool = True) -> bool:
    return True


def whatever_is_listed(policy: Policy, name: str, kind: Kind, *, protected: bool = True) -> bool:
    """By name alone: exact numbers leave under the list of those that are to be noised."""
    return name in (*policy.release, *policy.release_exact)


def evaluations_not_charged(ground: Ground) -> None:
    ground.patch.setattr(Release, "evaluation_charge", None)


class Silence:
    """A source of noise that draws none."""

    def standard_normals(self, count: int) -> Tensor:
        return Tensor([0.0] * count).double()


def without_noise(ground: Ground) -> None:
    means = noised.noised_means

    def exact(*arguments: Any, **more: Any) -> dict[str, float]:
        return means(*arguments, **(more | {"noise": Silence()}))

    for module in (noised, test_noised):
        ground.patch.setattr(module, "noised_means", exact)


def at_sites(guard: Callable[..., None]) -> Callable[[Ground], None]:
    """A guard that makes sites of its own."""

    def run(ground: Ground) -> None:
        with ExitStack() as opened:

            def make(**allowed: Any) -> Harbour:
                folder = ground.folder / "site"
                folder.mkdir()
                here = Harbour(folder, site(folder, **allowed))
                opened.callback(here.ledger.close)
                return here

            guard(make)

    return run


BUGS = [
    Bug(
        name="everything leaves",
        plant=let_out_if(anything),
        guard=at_sites(test_gates.test_nothing_leaves_but_what_the_policy_lists),
    ),
    Bug(
        name="exact metrics are taken for noised ones",
        plant=let_out_if(whatever_is_listed),
        guard=lambda _: test_release.test_a_metric_leaves_in_one_way_or_not_at_all(
            ("loss",), (), True, False
        ),
    ),
    Bug(
        name="evaluations are not charged",
        plant=evaluations_not_charged,
        guard=at_sites(
            test_egress.test_a_listed_metric_of_an_evaluation_leaves_with_noise_and_is_charged
        ),
    ),
    Bug(
        name="metrics that were charged for get no noise",
        plant=without_noise,
        guard=lambda _: (
            test_noised.test_the_noise_of_each_sum_is_the_multiplier_times_what_a_record_adds_at_most()
        ),
    ),
]

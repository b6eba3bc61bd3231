"""What was left out of an update, and leaves under a charge that it was not made under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from hanse_client import gates
from hanse_client.gates.encoding import keeping
from hanse_client.gates.ledger import ledger
from hanse_client.leftovers import Leftovers, Owner
from torch import Tensor

from tests.privacy.planting import Bug, Ground
from tests.unit.client import test_encoding
from tests.unit.client.test_encoding import WideHarbour


def of_any_job(ground: Ground) -> None:
    """A private job begins with what one without privacy has left out."""

    def at(self: Leftovers, owner: Owner, instruction: str) -> Mapping[str, Tensor]:
        return self.before if self.instruction == instruction else self.after

    ground.patch.setattr(Leftovers, "at", at)


def kept_before_the_release(ground: Ground) -> None:
    """The gate that keeps them lies inside the ledger's."""
    ground.patch.setattr(gates, "keeping", ledger)
    ground.patch.setattr(gates, "ledger", keeping)


def at_a_site(guard: Callable[..., None]) -> Callable[[Ground], None]:
    """A guard that opens a site of its own, and patches it."""

    def run(ground: Ground) -> None:
        with ExitStack() as opened:

            def make() -> WideHarbour:
                here = WideHarbour(ground.folder)
                opened.callback(here.ledger.close)
                return here

            guard(make, ground.patch)

    return run


BUGS = [
    Bug(
        name="what a job without privacy left out leaves with a private one",
        plant=of_any_job,
        guard=at_a_site(
            test_encoding.test_a_private_job_never_sends_what_one_without_privacy_left_out
        ),
    ),
    Bug(
        name="what is left out is kept before its charge counts for good",
        plant=kept_before_the_release,
        guard=at_a_site(test_encoding.test_nothing_is_kept_before_the_charge_counts_for_good),
    ),
]

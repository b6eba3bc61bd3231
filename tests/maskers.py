"""Sites in a session of secure aggregation, for tests that play the server, honest or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from hanse.aggregation import SecureAggregation
from hanse.flower import to_record
from hanse.secagg.cohort import Announcement, Cohort, SessionId
from hanse.secagg.fixed_point import FixedPoint
from hanse_client.secagg.identity import Identity, simulated
from hanse_client.secagg.session import Session
from hanse_server.secagg.total import MaskedSum
from hanse_server.updates import TensorSpec
from torch import Tensor

SESSION = SessionId(run_id=7, server_round=1, token="a" * 32, job="b" * 64)
SHAPES = {"weight": (4, 5), "bias": (3,), "scale": ()}

Update = Mapping[str, Tensor]


def update(seed: int) -> dict[str, Tensor]:
    """An update of a small model."""
    randomness = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=randomness) for n, shape in SHAPES.items()}


class Maskers:
    """The sites ``site-0``, ``site-1``, ...; site k has weight k + 1 and the update of seed k."""

    def __init__(
        self,
        count: int,
        *,
        min_sites: int = 2,
        identities: Mapping[str, Identity] | None = None,
        settings: SecureAggregation | None = None,
    ) -> None:
        self.settings = settings or SecureAggregation(enabled=True)
        self.names = [f"site-{number}" for number in range(count)]
        opened = identities or {name: simulated(name)() for name in self.names}
        self.weights = {name: at + 1.0 for at, name in enumerate(self.names)}
        self.updates = {name: update(at) for at, name in enumerate(self.names)}
        self.sessions = {
            name: Session(
                SESSION,
                self.settings,
                identity=opened[name],
                weight=self.weights[name],
                min_sites=min_sites,
            )
            for name in self.names
        }

    def announce(self, *without: str) -> list[Announcement]:
        """The announcements of all sites, but for those that are lost."""
        return [self.sessions[name].announce() for name in self.names if name not in without]

    def share(self, members: list[Announcement], *without: str) -> dict[str, dict[str, bytes]]:
        """The encrypted shares of the cohort, by sender and recipient."""
        names = [member.name for member in members if member.name not in without]
        return {name: self.sessions[name].share(members) for name in names}

    def mask(self, sharers: Collection[str], *without: str) -> dict[str, dict[str, Tensor]]:
        """What the sharers send, but for those that are lost."""
        masked = {}
        for name in sharers:
            if name not in without:
                self.sessions[name].begin_training(sharers)
                arrays = self.sessions[name].mask(self.updates[name])
                masked[name] = {key: torch.from_numpy(array) for key, array in arrays.items()}
        return masked

    def consent(self, survivors: Collection[str], *without: str) -> dict[str, bytes]:
        """The survivors' signatures of their list."""
        return {n: self.sessions[n].consent(survivors) for n in survivors if n not in without}

    def unmask(
        self,
        survivors: Collection[str],
        signatures: Mapping[str, bytes],
        sealed: Mapping[str, Mapping[str, bytes]],
        *without: str,
    ) -> dict[str, dict[str, bytes]]:
        """What the survivors that signed reveal."""
        return {
            name: self.sessions[name].unmask(survivors, signatures, addressed(sealed, name))
            for name in signatures
            if name not in without
        }

    def run(
        self,
        *,
        keys: Collection[str] = (),
        shares: Collection[str] = (),
        training: Collection[str] = (),
        survivors: Collection[str] = (),
        unmasking: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], list[str]]:
        """A whole session with an honest server; who is lost, by the stage that loses them.

        Returns:
            The unmasked mean, and of whom it is.
        """
        members = self.announce(*keys)
        sealed = self.share(members, *shares)
        masked = self.mask(list(sealed), *training)
        left = sorted(masked)
        signatures = self.consent(left, *survivors)
        revealed = self.unmask(left, signatures, sealed, *unmasking)
        cohort = Cohort(SESSION, members, self.settings)
        total = MaskedSum({n: TensorSpec(torch.float32, shape) for n, shape in SHAPES.items()})
        for arrays in masked.values():
            total.fold(to_record(arrays))
        total.unmask(cohort, list(sealed), left, revealed)
        return total.mean(cohort, left), left

    def mean(self, names: Collection[str]) -> dict[str, Tensor]:
        """The plain weighted mean of the updates of these sites, in float64."""
        weight = sum(self.weights[name] for name in names)
        return {
            key: sum(self.weights[n] * self.updates[n][key].double() for n in names) / weight  # type: ignore[misc]
            for key in SHAPES
        }

    def tolerance(self, members: int, names: Collection[str]) -> float:
        """How far the unmasked mean may be from the plain one: half a step a site, and float32."""
        step = FixedPoint(sites=members, range=self.settings.range).step
        weight = sum(self.weights[name] for name in names)
        largest = max(self.weights.values())
        return len(names) * step / 2 * largest / weight + 4e-7


def addressed(sealed: Mapping[str, Mapping[str, bytes]], recipient: str) -> dict[str, bytes]:
    """The shares that were sealed for one site, by sender."""
    return {sender: each[recipient] for sender, each in sealed.items() if recipient in each}

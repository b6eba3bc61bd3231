"""The sites of a session with their announced keys: what all ends derive the same terms from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from hanse.aggregation import SecureAggregation
from hanse.errors import SecureAggregationError
from hanse.secagg.fixed_point import FixedPoint
from hanse.secagg.masks import KEY_BYTES, transcript

MOST_SITES = 1_000
"""Of one session: the work of a site grows with their number, the shares with its square."""


@dataclass(frozen=True, kw_only=True)
class SessionId:
    """One try at one secure round; every key, signature and share is bound to it.

    Attributes:
        token: 32 hex digits that the server chooses, another for every try.
        job: the job's digest.
    """

    run_id: int
    server_round: int
    token: str
    job: str

    @property
    def packed(self) -> bytes:
        """The id as bytes."""
        return f"{self.run_id}/{self.server_round}/{self.token}/{self.job}".encode()


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What a site tells all others of itself for one session.

    Attributes:
        credential: what proves the key that signs: the site's certificate in DER.
        mask_key: raw X25519 public key that pairwise masks are agreed by.
        share_key: raw X25519 public key that shares are encrypted by.
        weight: of the site's update in the average: a declared constant, or a public count.
        signature: by the site's own key, over :meth:`signed`.
    """

    name: str
    credential: bytes
    mask_key: bytes
    share_key: bytes
    weight: float
    signature: bytes = b""

    def signed(self, session: SessionId) -> bytes:
        """The bytes that the site signs."""
        parts = (self.name.encode(), self.mask_key, self.share_key, self.weight.hex().encode())
        return transcript("announcement", session.packed, *parts)

    def check(self) -> None:
        """Refuse what no site announces.

        Raises:
            SecureAggregationError: naming the site.
        """
        if len(self.mask_key) != KEY_BYTES or len(self.share_key) != KEY_BYTES:
            raise SecureAggregationError(f"site {self.name!r} announced a key of another length")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise SecureAggregationError(f"site {self.name!r} announced weight = {self.weight}")


class Cohort:
    """Those who announced themselves for a session.

    Raises:
        SecureAggregationError: if a name stands twice, an announcement is malformed, or there
            are more than 1,000.
    """

    def __init__(
        self, session: SessionId, members: Iterable[Announcement], settings: SecureAggregation
    ) -> None:
        self.session = session
        self.settings = settings
        ordered = sorted(members, key=lambda member: member.name)
        self.members: Mapping[str, Announcement] = {member.name: member for member in ordered}
        if len(self.members) != len(ordered):
            raise SecureAggregationError("a site is announced twice in one session")
        if len(ordered) > MOST_SITES:
            raise SecureAggregationError(
                f"{len(ordered)} sites are more than {MOST_SITES}, the most of a secure round: "
                "lower strategy.fraction"
            )
        for member in ordered:
            member.check()

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that was announced."""
        signed = [
            part
            for member in self.members.values()
            for part in (member.signed(self.session), member.credential)
        ]
        return hashlib.sha256(transcript("cohort", *signed)).digest()

    @property
    def least(self) -> int:
        """How many of the cohort make a sum, sign its list of survivors, recover a secret.

        More than half: of two lists with no site in common, one never has enough.
        """
        whole = len(self)
        return max(math.ceil(round(self.settings.threshold * whole, 9)), whole // 2 + 1)

    def peers(self, name: str) -> tuple[str, ...]:
        """With whom a site masks: with all others.

        A sparse graph would do as long as the lost are lost by chance. A server that chooses
        them can cut it around a few sites, and learn the sum of these alone.
        """
        return tuple(other for other in self.members if other != name)

    @property
    def holders(self) -> tuple[str, ...]:
        """Who holds shares of each site's secrets, in the order of the shares: also itself."""
        return tuple(self.members)

    @cached_property
    def largest_weight(self) -> float:
        """What every weight is divided by, so that none is above 1."""
        return max(member.weight for member in self.members.values())

    @property
    def fixed_point(self) -> FixedPoint:
        """How update times weight over the largest weight is written as integers."""
        return FixedPoint(sites=len(self), range=self.settings.range)

    def mask_context(self, one: str, other: str) -> bytes:
        """What the key of a pairwise mask is bound to, the same at both ends."""
        pair = sorted((one, other))
        return transcript("mask", self.session.packed, *(name.encode() for name in pair))

    def share_context(self, sender: str, recipient: str) -> bytes:
        """What the key of an encrypted share is bound to."""
        return transcript("share", self.digest, sender.encode(), recipient.encode())

    def consent(self, sharers: Collection[str], survivors: Collection[str]) -> bytes:
        """The bytes that a survivor signs to say: this is the one list that I was told."""
        lists = ("\n".join(sorted(names)).encode() for names in (sharers, survivors))
        return transcript("survivors", self.digest, *lists)

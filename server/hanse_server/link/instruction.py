"""What the app has the link carry, and what it gets back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from flwr.app import Message
from hanse.flower import Envelope
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded

from hanse_server.audit import ServerTrail
from hanse_server.journal import Entry, Journal
from hanse_server.link.slots import Slots


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A message for one site.

    Attributes:
        encoded: may be shared by many; None of one that is not sent again: a site that has lost
            it is to go on with what is asked now.
        limits: what the reply is held against.
    """

    site: str
    envelope: Envelope
    encoded: Encoded | None
    limits: Limits

    @property
    def id(self) -> str:
        """The message id."""
        return self.envelope.message_id


def put_down(trail: ServerTrail, journal: Journal, instructions: Collection[Instruction]) -> None:
    """Tell the trail and the journal durably that replies are owed, before anything is sent."""
    # The trail first: what the journal has as owed, a restarted server may get answered.
    trail.instructed((each.site, each.envelope, each.encoded) for each in instructions)
    journal.owe(
        Entry(
            instruction=each.id,
            run_id=each.envelope.run_id,
            site=each.site,
            message_type=each.envelope.message_type,
            group_id=each.envelope.group_id,
        )
        for each in instructions
    )


@dataclass(frozen=True)
class Reply:
    """A reply that arrived; whoever takes it gives its slot back, if it holds one."""

    message: Message
    slots: Slots | None

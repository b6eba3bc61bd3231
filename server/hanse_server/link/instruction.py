"""What the app has the link carry, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Message
from hanse.flower import Envelope
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded

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


@dataclass(frozen=True)
class Reply:
    """A reply that arrived; whoever takes it gives its slot back, if it holds one."""

    message: Message
    slots: Slots | None

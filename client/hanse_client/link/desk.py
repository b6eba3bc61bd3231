"""What outlives a stream at a site, and how much of it a server can bring about."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from flwr.app import RecordDict
from hanse.encodings import CAPABILITIES
from hanse.errors import HanseError, WireError
from hanse.flower import Envelope, open_envelope
from hanse.wire import hanse_pb2 as pb
from hanse.wire.allowance import Allowance
from hanse.wire.assembler import Assembler
from hanse.wire.limits import Limits
from hanse.wire.protocol import MOST_TOLD

from hanse_client.link.coordinator import make_hello
from hanse_client.link.worker import Worker
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox

log = logging.getLogger("hanse.client")

MOST_PARTIAL = 4
MOST_BUSY = 64
WAITING_BODIES = 2
"""How many of the largest bodies may wait together, the one that is under way included."""

MOST_HELD = 512
"""Replies that the server has not settled: its rounds settle theirs as they end."""

REFUSED_AT_ONCE, REFUSED_PER_SECOND = 1000, 1.0
"""Each refusal is a line of the audit trail, a row of the outbox and a word to the server."""


@dataclass
class Desk:
    """What outlives a stream: instructions in part here, with the worker, or answered.

    Attributes:
        held: ids of instructions whose replies are in the outbox.
        busy: ids of instructions that the worker has not answered yet.
        partial: instructions of which some bytes are here.
        weary: whether the last of too many refusals has just been given.
    """

    outbox: Outbox
    worker: Worker
    metrics: ClientMetrics
    limits: Limits
    held: set[str]
    busy: set[str] = field(default_factory=set)
    partial: OrderedDict[str, Assembler] = field(default_factory=OrderedDict)
    weary: bool = False
    _sizes: dict[str, int] = field(default_factory=dict)  # of the bodies of what is busy
    _refused: Allowance = field(
        default_factory=lambda: Allowance(most=REFUSED_AT_ONCE, per_second=REFUSED_PER_SECOND)
    )

    def hello(self) -> pb.Hello:
        """The first frame of a stream: how far this site is."""
        progress = [
            pb.Progress(message_id=each, received=assembler.received)
            for each, assembler in self.partial.items()
        ]
        held, busy = sorted(self.held)[:MOST_TOLD], sorted(self.busy)[:MOST_TOLD]
        return make_hello(capabilities=CAPABILITIES, held=held, busy=busy, partial=progress)

    def submit(self, assembler: Assembler) -> None:
        """Hand a complete instruction to the worker.

        Raises:
            WireError: if there are too many, or too many before it were refused.
        """
        try:
            instruction = assembler.message()
        except WireError as error:
            self.refuse(assembler.envelope, error)
        else:
            self._begin(assembler.envelope.message_id, assembler.size)
            self.worker.submit(instruction)

    def refuse(self, envelope: Envelope, error: HanseError) -> None:
        """Have the worker answer an instruction that cannot be taken in.

        Raises:
            WireError: as :meth:`submit`.
        """
        log.warning("an instruction was refused: %s", error)
        self._begin(envelope.message_id, 0)
        self.worker.refuse(open_envelope(envelope, RecordDict()), error)

    def keep_partial(self, instruction: str, assembler: Assembler) -> None:
        """Keep an instruction that has begun to arrive, before the oldest of them."""
        self.partial[instruction] = assembler
        self.drop_partial()

    def drop_partial(self) -> None:
        """Drop the oldest instructions in part, while they are many or large together."""
        room = self.limits.max_body_bytes
        while len(self.partial) > 1 and (
            len(self.partial) > MOST_PARTIAL
            or sum(each.received for each in self.partial.values()) > room
        ):
            self.partial.popitem(last=False)

    def _begin(self, instruction: str, size: int) -> None:
        """Count an instruction as waiting, or under way.

        Raises:
            WireError: if there are too many, or they are too large together.
        """
        if self.weary:
            raise WireError(
                f"more than {REFUSED_AT_ONCE} instructions were refused within a moment: no more "
                f"than {REFUSED_PER_SECOND:.0f} a second are answered"
            )
        room = WAITING_BODIES * self.limits.max_body_bytes
        if len(self.busy) >= MOST_BUSY or sum(self._sizes.values()) + size > room:
            raise WireError(
                f"{len(self.busy)} instructions of {sum(self._sizes.values())} bytes wait already: "
                f"the most are {MOST_BUSY} instructions of {room} bytes"
            )
        if len(self.held) >= MOST_HELD:
            raise WireError(
                f"{len(self.held)} replies are not settled: no more instructions are taken on"
            )
        self.busy.add(instruction)
        self._sizes[instruction] = size
        self.metrics.waiting_since.labels("instruction").set(0)

    def answered(self, instruction: str, *, kept: bool, refused: bool = False) -> None:
        """The worker has answered an instruction."""
        self.weary = refused and not self._refused.take()
        self.busy.discard(instruction)
        self._sizes.pop(instruction, None)
        if kept:
            self.held.add(instruction)
        self.metrics.outbox.set(len(self.held))
        if not self.busy:
            self.metrics.waiting_since.labels("instruction").set_to_current_time()

    def settled(self, instructions: Collection[str]) -> list[str]:
        """The server needs these replies no longer; what was not begun would be in vain.

        Returns:
            Those that are in the outbox.
        """
        for each in instructions:
            self.partial.pop(each, None)
        withdrawn = self.worker.withdraw(self.busy.intersection(instructions))
        self.busy.difference_update(withdrawn)
        for each in withdrawn:
            self._sizes.pop(each, None)
        held = [each for each in instructions if each in self.held]
        self.held.difference_update(held)
        self.metrics.outbox.set(len(self.held))
        if withdrawn:
            log.info("%d instructions were withdrawn before they were begun", len(withdrawn))
        return held

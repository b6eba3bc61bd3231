"""One open stream to the coordinator: instructions in, replies out."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field

from flwr.app import RecordDict
from hanse.errors import WireError
from hanse.flower import Envelope, open_envelope
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler, check_envelope
from hanse.wire.duplex import Duplex
from hanse.wire.limits import Limits
from hanse.wire.protocol import STOPPING, error_of

from hanse_client.link.coordinator import RefusedError, make_hello
from hanse_client.link.worker import Worker
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox

log = logging.getLogger("hanse.client")

MOST_PARTIAL = 4


@dataclass
class Desk:
    """What outlives a stream: instructions in part here, with the worker, or answered.

    Attributes:
        held: ids of instructions whose replies are in the outbox.
        busy: ids of instructions that the worker has not answered yet.
        partial: instructions of which some bytes are here.
    """

    outbox: Outbox
    worker: Worker
    metrics: ClientMetrics
    limits: Limits
    held: set[str]
    busy: set[str] = field(default_factory=set)
    partial: OrderedDict[str, Assembler] = field(default_factory=OrderedDict)

    def hello(self) -> pb.Hello:
        """The first frame of a stream: how far this site is."""
        progress = [
            pb.Progress(message_id=each, received=assembler.received)
            for each, assembler in self.partial.items()
        ]
        return make_hello(held=sorted(self.held), busy=sorted(self.busy), partial=progress)

    def submit(self, assembler: Assembler) -> None:
        """Hand a complete instruction to the worker."""
        try:
            instruction = assembler.message()
        except WireError as error:
            self.refuse(assembler.envelope, error)
        else:
            self._begin(assembler.envelope.message_id)
            self.worker.submit(instruction)

    def refuse(self, envelope: Envelope, error: WireError) -> None:
        """Have the worker answer an instruction that cannot be taken in."""
        log.warning("an instruction was refused: %s", error)
        self._begin(envelope.message_id)
        self.worker.refuse(open_envelope(envelope, RecordDict()), error)

    def _begin(self, instruction: str) -> None:
        self.busy.add(instruction)
        self.metrics.waiting_since.labels("instruction").set(0)

    def answered(self, instruction: str, *, kept: bool) -> None:
        """The worker has answered an instruction."""
        self.busy.discard(instruction)
        if kept:
            self.held.add(instruction)
        self.metrics.outbox.set(len(self.held))
        if not self.busy:
            self.metrics.waiting_since.labels("instruction").set_to_current_time()

    def settled(self, instructions: Collection[str]) -> None:
        """The server needs these replies no longer; what was not begun would be in vain."""
        for each in instructions:
            self.partial.pop(each, None)
        withdrawn = self.worker.withdraw(self.busy.intersection(instructions))
        self.busy.difference_update(withdrawn)
        self.held.difference_update(instructions)
        self.metrics.outbox.set(len(self.held))
        if withdrawn:
            log.info("%d instructions were withdrawn before they were begun", len(withdrawn))


class Stream:
    """What goes in and out while the stream is open."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._sending: set[str] = set()
        self.duplex = Duplex(pb.SiteFrame(heartbeat=pb.Heartbeat()))

    def announce(self, header: pb.Header) -> None:
        """Tell the server that there is a reply; it asks for the body when it has room."""
        self._desk.metrics.sent_bytes.inc(header.ByteSize())
        self.duplex.outgoing.put(pb.SiteFrame(header=header))

    def leave(self, why: str = "the site stops") -> None:
        """End the stream in good order."""
        last = pb.Goodbye(reason=STOPPING, message=why, retry=True)
        self.duplex.close(pb.SiteFrame(goodbye=last))

    @property
    def at_work(self) -> bool:
        """Whether an instruction is with the worker, and nothing is on its way in or out."""
        return bool(self._desk.busy) and not self._desk.partial and not self._sending

    async def on_frame(self, frame: pb.ServerFrame) -> None:
        """Act on what the server says.

        Raises:
            RefusedError: if it says goodbye.
            WireError: if it cannot be understood.
        """
        kind = frame.WhichOneof("kind")
        if kind == "header":
            await self._begin(frame.header)
        elif kind == "chunk":
            self._go_on(frame.chunk)
        elif kind == "ask":
            await self._announce_held(frame.ask.message_id)
        elif kind == "ack" and not frame.ack.complete:
            self._hand_over(frame.ack.message_id, frame.ack.received)
        elif kind == "settle":
            await self._forget(list(frame.settle.message_ids))
        elif kind == "goodbye":
            raise RefusedError(error_of(frame.goodbye), retry=frame.goodbye.retry)

    # --- instructions -------------------------------------------------------------------------

    async def _begin(self, header: pb.Header) -> None:
        """An instruction is on its way; one that is known already is not taken twice."""
        desk = self._desk
        desk.metrics.received_bytes.inc(header.ByteSize())
        envelope = check_envelope(header, desk.limits)
        instruction = envelope.message_id
        if instruction in desk.busy:
            return
        if instruction in desk.held:
            await self._announce_held(instruction)
            return
        assembler = desk.partial.pop(instruction, None)
        try:
            if assembler is None or not assembler.take_up(header, desk.limits):
                assembler = Assembler(header, desk.limits)
        except WireError as error:
            desk.refuse(envelope, error)
            return
        desk.partial[instruction] = assembler
        while len(desk.partial) > MOST_PARTIAL:
            desk.partial.popitem(last=False)
        self._look_at(instruction, assembler)

    def _go_on(self, chunk: pb.Chunk) -> None:
        assembler = self._desk.partial.get(chunk.message_id)
        if assembler is None:
            return
        self._desk.metrics.received_bytes.inc(len(chunk.data))
        assembler.add(chunk.offset, chunk.data)
        self._look_at(chunk.message_id, assembler)

    def _look_at(self, instruction: str, assembler: Assembler) -> None:
        """Hand an instruction to the worker, if it is complete."""
        if assembler.complete:
            del self._desk.partial[instruction]
            self._desk.submit(assembler)

    # --- replies --------------------------------------------------------------------------------

    async def _announce_held(self, instruction: str) -> None:
        header = await asyncio.to_thread(self._desk.outbox.header, instruction)
        if header is not None:
            self.announce(pb.Header.FromString(header))

    def _hand_over(self, instruction: str, received: int) -> None:
        if instruction not in self._sending:
            self._sending.add(instruction)
            self.duplex.outgoing.transfer(self._body(instruction, received))

    async def _body(self, instruction: str, start: int) -> AsyncGenerator[pb.SiteFrame, None]:
        outbox, offset = self._desk.outbox, start
        while data := await asyncio.to_thread(outbox.piece, instruction, offset):
            self._desk.metrics.sent_bytes.inc(len(data))
            chunk = pb.Chunk(message_id=instruction, offset=offset, data=data)
            yield pb.SiteFrame(chunk=chunk)
            offset += len(data)
        self._sending.discard(instruction)

    async def _forget(self, instructions: list[str]) -> None:
        self._desk.settled(instructions)
        await asyncio.to_thread(self._desk.outbox.forget, instructions)

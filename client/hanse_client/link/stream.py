"""One open stream to the coordinator: instructions in, replies out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator

from hanse.errors import PolicyError, WireError
from hanse.parts import Data
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler, check_envelope
from hanse.wire.duplex import Duplex
from hanse.wire.frames import Chunk, Opening, header_of
from hanse.wire.message import Encoded
from hanse.wire.protocol import STOPPING, error_of

from hanse_client.link.coordinator import RefusedError
from hanse_client.link.desk import Desk

MOST_ASKS = 64
"""How often a server may ask for the header of one reply over one stream."""


class Stream:
    """What goes in and out while the stream is open."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._sending: set[str] = set()
        self._asked: Counter[str] = Counter()
        self._inline: dict[str, int] = {}  # what a header of a reply may hold, on this stream
        self.duplex: Duplex[pb.SiteFrame | Chunk | Opening] = Duplex(
            pb.SiteFrame(heartbeat=pb.Heartbeat())
        )

    def answer(self, instruction: str, header: pb.Header, encoded: Encoded) -> None:
        """Announce the reply to an instruction; its body with it, if there is room for that."""
        fits = encoded.body_size <= self._inline.pop(instruction, 0)
        self.announce(Opening(header, encoded.body if fits else ()))

    def announce(self, opening: Opening) -> None:
        """Tell the server that there is a reply; it asks for the body when it has room."""
        self._desk.metrics.sent_bytes.inc(opening.header.ByteSize() + opening.size)
        self.duplex.outgoing.put(opening)

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
            await self._begin(*header_of(frame))
        elif kind == "chunk":
            self._go_on(frame.chunk)
        elif kind == "ask":
            await self._announce_held(frame.ask.message_id)
        elif kind == "ack":
            self._hand_over(frame.ack.message_id, frame.ack.received)
        elif kind == "settle":
            await self._forget(list(frame.settle.message_ids))
        elif kind == "goodbye":
            raise RefusedError(error_of(frame.goodbye), retry=frame.goodbye.retry)

    # --- instructions -------------------------------------------------------------------------

    async def _begin(self, header: pb.Header, body: Data) -> None:
        """An instruction is on its way; one that is known already is not taken twice."""
        desk = self._desk
        desk.metrics.received_bytes.inc(header.ByteSize() + len(body))
        envelope = check_envelope(header, desk.limits)
        instruction = envelope.message_id
        if instruction in desk.busy:
            return
        if instruction in desk.held:
            await self._announce_held(instruction)
            return
        if desk.outbox.was_settled(instruction):  # a point query: a thread would cost more
            replayed = f"instruction {instruction} was answered and settled: it is not done twice"
            desk.refuse(envelope, PolicyError(replayed))
            return
        assembler = desk.partial.pop(instruction, None)
        try:
            if assembler is None or body or not assembler.take_up(header, desk.limits):
                assembler = Assembler(header, desk.limits, body=body)
        except WireError as error:
            desk.refuse(envelope, error)
            return
        desk.keep_partial(instruction, assembler)
        self._look_at(instruction, assembler)

    def _go_on(self, chunk: pb.Chunk | Chunk) -> None:
        assembler = self._desk.partial.get(chunk.message_id)
        if assembler is None:
            return
        self._desk.metrics.received_bytes.inc(len(chunk.data))
        assembler.add(chunk.offset, chunk.data)
        self._desk.drop_partial()
        self._look_at(chunk.message_id, assembler)

    def _look_at(self, instruction: str, assembler: Assembler) -> None:
        """Hand an instruction to the worker, if it is complete."""
        if assembler.complete:
            del self._desk.partial[instruction]
            self._inline[instruction] = assembler.inline
            self._desk.submit(assembler)

    # --- replies --------------------------------------------------------------------------------

    async def _announce_held(self, instruction: str) -> None:
        if instruction not in self._desk.held:
            return
        self._asked[instruction] += 1
        if self._asked[instruction] > MOST_ASKS:
            raise WireError(f"the server asks for reply {instruction} more than {MOST_ASKS} times")
        header = await asyncio.to_thread(self._desk.outbox.header, instruction)
        if header is not None:
            self.announce(Opening(pb.Header.FromString(header)))

    def _hand_over(self, instruction: str, received: int) -> None:
        if instruction in self._desk.held and instruction not in self._sending:
            self._sending.add(instruction)
            self.duplex.outgoing.transfer(self._body(instruction, received))

    async def _body(
        self, instruction: str, start: int
    ) -> AsyncGenerator[pb.SiteFrame | Chunk, None]:
        outbox, offset = self._desk.outbox, start
        while data := await asyncio.to_thread(outbox.piece, instruction, offset):
            self._desk.metrics.sent_bytes.inc(len(data))
            yield Chunk(instruction, offset, (data,))
            offset += len(data)
        self._sending.discard(instruction)

    async def _forget(self, instructions: list[str]) -> None:
        for each in instructions:
            self._inline.pop(each, None)
        held = self._desk.settled(instructions)
        for each in held:
            self._asked.pop(each, None)
        if held:
            await asyncio.to_thread(self._desk.outbox.forget, held)

"""One open stream of a site that was let in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from hanse.errors import HanseError
from hanse.flower import Envelope
from hanse.identity import node_id_of
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import Encoded, chunks, make_header
from hanse.wire.outgoing import Outgoing
from hanse.wire.protocol import MISSED_HEARTBEATS, STOPPING, goodbye

log = logging.getLogger("hanse.link")

LINGER_SECONDS = 2.0


class Session:
    """What is known of a site while its stream is open, and what is to be sent to it.

    Attributes:
        held: instructions whose reply lies in the site's outbox.
        busy: instructions that the site has got and not yet answered.
        sent: bytes of payload sent on this stream.
    """

    def __init__(self, site: str, fingerprint: str, count_sent: Callable[[str, int], None]) -> None:
        self.site = site
        self.node_id = node_id_of(site)
        self.fingerprint = fingerprint
        self.held: set[str] = set()
        self.busy: set[str] = set()
        self.outgoing: Outgoing[pb.ServerFrame] = Outgoing()
        self._count_sent = count_sent
        self._heard_at = time.monotonic()
        self._dismissed = asyncio.Event()

    # --- what is to be sent -----------------------------------------------------------------

    def instruct(
        self, encoded: Encoded, envelope: Envelope, *, start: int, wanted: Callable[[], bool]
    ) -> None:
        """Send an instruction, its body from byte ``start`` on, if it is ``wanted`` by then."""
        self.busy.add(envelope.message_id)
        self.outgoing.transfer(self._instruction(encoded, envelope, start, wanted))

    def ask(self, instruction: str, received: int = 0) -> None:
        """Ask for the reply to an instruction, from byte ``received`` on."""
        ack = pb.Ack(message_id=instruction, received=received)
        self.outgoing.put(pb.ServerFrame(ack=ack))

    def acknowledge(self, instruction: str, size: int) -> None:
        """Tell the site that its reply has arrived whole."""
        ack = pb.Ack(message_id=instruction, received=size, complete=True)
        self.outgoing.put(pb.ServerFrame(ack=ack))

    def settle(self, instructions: Iterable[str]) -> None:
        """Tell the site which replies it need no longer keep."""
        done = list(instructions)
        self.held.difference_update(done)
        self.outgoing.put(pb.ServerFrame(settle=pb.Settle(message_ids=done)))

    def finished(self, instruction: str) -> None:
        """The site has answered an instruction: the reply is in its outbox."""
        self.busy.discard(instruction)
        self.held.add(instruction)

    def dismiss(self, error: HanseError | None, *, retry: bool) -> None:
        """End the stream, after a word of explanation."""
        frame = pb.Goodbye(reason=STOPPING, message="the server stops", retry=retry)
        if error is not None:
            frame = goodbye(error, retry=retry)
        self.outgoing.put(pb.ServerFrame(goodbye=frame))
        self.outgoing.close()
        self._dismissed.set()

    async def _instruction(
        self, encoded: Encoded, envelope: Envelope, start: int, wanted: Callable[[], bool]
    ) -> AsyncIterator[pb.ServerFrame]:
        if not wanted():
            self.busy.discard(envelope.message_id)
            return
        header = make_header(encoded, envelope)
        self._count_sent(self.site, header.ByteSize())
        yield pb.ServerFrame(header=header)
        for offset, data in chunks(encoded, start):
            self._count_sent(self.site, len(data))
            chunk = pb.Chunk(message_id=envelope.message_id, offset=offset, data=data)
            yield pb.ServerFrame(chunk=chunk)

    # --- the stream ---------------------------------------------------------------------------

    async def run(
        self, context: Any, on_frame: Callable[[Session, pb.SiteFrame], None], heartbeat: float
    ) -> None:
        """Send and receive until one side ends the stream or falls silent."""
        work = (
            self._send(context),
            self._receive(context, on_frame),
            self._beat(heartbeat),
            self._linger(),
        )
        tasks = [asyncio.create_task(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, context: Any) -> None:
        async for frame in self.outgoing:
            await context.write(frame)

    async def _receive(
        self, context: Any, on_frame: Callable[[Session, pb.SiteFrame], None]
    ) -> None:
        while isinstance(frame := await context.read(), pb.SiteFrame):
            self._heard_at = time.monotonic()
            if self._dismissed.is_set():
                continue
            if frame.WhichOneof("kind") == "goodbye":
                return
            try:
                on_frame(self, frame)
            except HanseError as error:
                log.warning("%s: %s", self.site, error)
                self.dismiss(error, retry=True)

    async def _beat(self, seconds: float) -> None:
        """Send heartbeats; end when the site has missed too many of its own."""
        while (silence := time.monotonic() - self._heard_at) < MISSED_HEARTBEATS * seconds:
            self.outgoing.put(pb.ServerFrame(heartbeat=pb.Heartbeat()))
            await asyncio.sleep(seconds)
        log.warning("%s: silent for %.0f s; given up", self.site, silence)

    async def _linger(self) -> None:
        """After a dismissal, leave the site a moment to read why."""
        await self._dismissed.wait()
        await asyncio.sleep(LINGER_SECONDS)

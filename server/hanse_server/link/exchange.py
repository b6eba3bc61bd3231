"""Who is owed what: instructions on their way to the sites, replies on their way back.

Everything here runs on the link's event loop, so nothing needs a lock.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import Message, RecordDict
from hanse.errors import HanseError, LostError, NotRegisteredError, WireError
from hanse.flower import Envelope, error_reply, open_envelope
from hanse.parts import Data
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler, check_envelope
from hanse.wire.body import Spool
from hanse.wire.frames import Chunk
from hanse.wire.limits import Limits

from hanse_server.audit import ServerTrail
from hanse_server.journal import Entry, Journal, State
from hanse_server.link.instruction import Instruction, Reply
from hanse_server.link.manners import Complaints
from hanse_server.link.pending import Pending
from hanse_server.link.session import Session
from hanse_server.link.slots import Allotment, Progress, Slots
from hanse_server.link.window import ON_THE_WAY, SendWindow, least_piece
from hanse_server.metrics import ServerMetrics

log = logging.getLogger("hanse.link")

MOST_ABANDONED = 10_000
"""Instructions without a reply in time that are remembered, to tell of a late one."""

MOST_PARTIAL = 8
"""Replies of sites that went away half-way, kept so that they can go on from there."""


@dataclass
class Exchange:
    """The instructions that are pending, and the sessions of the sites that are there.

    Attributes:
        spool: for replies that are not small, while they come and until they are folded,
            so that the memory does not grow with their number; None to keep them in memory.
    """

    journal: Journal
    metrics: ServerMetrics
    limits: Limits
    trail: ServerTrail
    spool: Spool | None = None
    complaints: Complaints = field(default_factory=lambda: Complaints(log))
    window: SendWindow = field(default_factory=SendWindow)
    sessions: dict[str, Session] = field(default_factory=dict)
    _pending: dict[str, Pending] = field(default_factory=dict)
    _inline: Allotment = field(default_factory=lambda: Allotment(ON_THE_WAY))
    _partial: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _late: set[str] = field(default_factory=set)
    _abandoned: OrderedDict[str, str] = field(default_factory=OrderedDict)  # each with its site

    # --- what the app asks for ------------------------------------------------------------

    def push(
        self, instructions: Iterable[Instruction], answer: Callable[[Reply], None], slots: Slots
    ) -> None:
        """Send instructions, now or when their sites come; hand each reply to ``answer``."""
        for instruction in instructions:
            pending = Pending(instruction, answer, slots)
            self._pending[pending.id] = pending
            session = self.sessions.get(instruction.site)
            if session is not None:
                self._deliver(session, pending, 0)

    def abandon(self, instructions: Iterable[str]) -> None:
        """Wait for these no longer."""
        for each in instructions:
            pending = self._pending.pop(each, None)
            self._partial.pop(each, None)
            self._inline.give_back(each)
            if pending is None:
                continue
            site = pending.instruction.site
            self.trail.abandoned(site, pending.instruction.envelope)
            self._abandoned[each] = site
            if pending.granted:
                self.release(pending.slots)
        while len(self._abandoned) > MOST_ABANDONED:
            self._abandoned.popitem(last=False)

    def outdate(self, instructions: Iterable[str]) -> None:
        """Wait for these as before, but do not send them again, nor keep what they hold."""
        for each in instructions:
            pending = self._pending.get(each)
            if pending is not None:
                pending.instruction = replace(pending.instruction, encoded=None)

    def taken(self, instruction: str, slots: Slots | None) -> None:
        """The app has taken a reply, which held a slot, or came in its header."""
        self._inline.give_back(instruction)
        if slots is not None:
            self.release(slots)

    def release(self, slots: Slots) -> None:
        """A slot is free again: the next reply that waits for one may come."""
        slots.free += 1
        while slots.free and slots.waiting:
            first = next(iter(slots.waiting))
            del slots.waiting[first]
            pending = self._pending.get(first)
            if pending is None or pending.granted or pending.assembler is None:
                continue
            session = self.sessions.get(pending.instruction.site)
            if session is not None:
                self._grant(session, pending, pending.assembler)

    def settle(self, entries: Iterable[Entry]) -> None:
        """Tell the sites that are there what they need no longer keep."""
        done: dict[str, list[str]] = {}
        for entry in entries:
            done.setdefault(entry.site, []).append(entry.instruction)
            self._late.discard(entry.instruction)
        for site, instructions in done.items():
            session = self.sessions.get(site)
            if session is not None:
                session.settle(instructions)

    def refuse_unregistered(self, registered: Collection[str]) -> None:
        """Answer what is pending for sites that cannot come any more."""
        for pending in list(self._pending.values()):
            site = pending.instruction.site
            if site not in registered:
                self._fail(pending, NotRegisteredError(f"site {site!r} is not registered"))

    def slow(self, now: float) -> list[tuple[Session, str]]:
        """The sites that hold a slot without getting on, or for longer than their turn, and why.

        Args:
            now: by the monotonic clock.
        """
        found = []
        for pending in self._pending.values():
            session = self.sessions.get(pending.instruction.site)
            if session is None or pending.progress is None or pending.assembler is None:
                continue
            why = pending.progress.complaint(pending.assembler.received, pending.slots, now)
            if why:
                found.append((session, why))
        return found

    # --- what the sessions report -----------------------------------------------------------

    def joined(self, session: Session, hello: pb.Hello) -> None:
        """A site is there: send it what it is owed and ask for what it holds."""
        self.sessions[session.site] = session
        session.held.update(hello.held)
        session.busy.update(hello.busy)
        unasked = [each for each in hello.held if each not in self._pending]
        self._settle_unasked(session, unasked, late=False)
        partial = {progress.message_id: progress.received for progress in hello.partial}
        for pending in list(self._pending.values()):
            if pending.instruction.site == session.site:
                self._deliver(session, pending, partial.get(pending.id, 0))

    def left(self, session: Session) -> None:
        """A site is gone. What arrived of its replies is kept, for some of them."""
        del self.sessions[session.site]
        for pending in list(self._pending.values()):
            if pending.instruction.site == session.site and pending.granted:
                pending.progress = None
                self._partial[pending.id] = None
                self.release(pending.slots)
        while len(self._partial) > MOST_PARTIAL:
            oldest, _ = self._partial.popitem(last=False)
            self._pending[oldest].assembler = None

    def on_header(self, session: Session, header: pb.Header, body: Data = b"") -> None:
        """A site has a reply.

        Args:
            body: the whole of it, if it came with the header.

        Raises:
            WireError: if it cannot be told which instruction it answers, or there were too many
                of no use.
        """
        envelope = check_envelope(header, self.limits)
        instruction = envelope.reply_to
        pending = self._pending_of(session, instruction)
        known = pending is None or pending.assembler is not None
        if known and instruction not in session.busy:
            session.stray("a header of a reply that was not asked for, or is known")
        if pending is None:
            self._settle_unasked(session, [instruction], late=True)
            return
        session.finished(instruction)
        try:
            self._announced(session, pending, header, envelope, body)
        except WireError as error:
            self._fail(pending, error)

    def on_chunk(self, session: Session, chunk: pb.Chunk | Chunk) -> None:
        """The next piece of a reply; what nobody waits for is dropped.

        Raises:
            WireError: if there was too much that was never asked for.
        """
        session.body_came(chunk.message_id, len(chunk.data))
        pending = self._pending_of(session, chunk.message_id)
        if pending is None or pending.assembler is None or not pending.granted:
            return
        try:
            pending.assembler.add(chunk.offset, chunk.data)
            if pending.assembler.complete:
                self._arrived(session, pending, pending.assembler)
        except WireError as error:
            self._fail(pending, error)

    # --- the way of one instruction -----------------------------------------------------------

    def _deliver(self, session: Session, pending: Pending, start: int) -> None:
        encoded = pending.instruction.encoded
        if pending.id in session.held:
            session.ask(pending.id)
        elif pending.id in session.busy:
            return
        elif encoded is None:
            self._fail(pending, LostError(f"site {session.site!r} has lost what it was at"))
        else:
            inline = min(self.window.largest, pending.instruction.limits.max_body_bytes)
            session.instruct(
                encoded,
                pending.instruction.envelope,
                start=start if start <= encoded.body_size else 0,
                least=least_piece(len(self.sessions)),
                inline=lambda: self._inline.allot(pending.id, inline),
                wanted=lambda: pending.id in self._pending,
            )

    def _announced(
        self,
        session: Session,
        pending: Pending,
        header: pb.Header,
        envelope: Envelope,
        body: Data,
    ) -> None:
        own = pending.instruction.envelope
        if (envelope.src_node_id, envelope.run_id) != (own.dst_node_id, own.run_id):
            raise WireError(f"a reply of {session.site} carries the id of another site or run")
        if (envelope.message_type, envelope.group_id) != (own.message_type, own.group_id):
            raise WireError(f"a reply of {session.site} is of another type or round than asked for")
        most = self._inline.of(pending.id)
        if len(body) > most:
            raise WireError(
                f"a header of {session.site} holds {len(body)} bytes of a body, it was told that "
                f"the most are {most}"
            )
        if pending.granted:
            return  # it is on its way already
        assembler = pending.assembler
        limits = pending.instruction.limits
        if assembler is None or body or not assembler.take_up(header, limits):
            assembler = pending.assembler = Assembler(header, limits, self.spool, body)
        if assembler.complete:
            self._arrived(session, pending, assembler)
        elif pending.slots.free:
            self._grant(session, pending, assembler)
        else:
            pending.slots.waiting[pending.id] = None

    def _grant(self, session: Session, pending: Pending, assembler: Assembler) -> None:
        pending.slots.free -= 1
        pending.progress = Progress.begin(assembler.received)
        self._partial.pop(pending.id, None)
        session.grant(pending.id, assembler.received, assembler.size)

    def _arrived(self, session: Session, pending: Pending, assembler: Assembler) -> None:
        message = assembler.message()
        self._answer(
            pending,
            message,
            digest=assembler.digest.hex(),
            bytes=assembler.size,
            blake3=assembler.arrays_digest(),
        )

    def _fail(self, pending: Pending, error: HanseError) -> None:
        self.complaints.tell(pending.instruction.site, str(error))
        asked = open_envelope(pending.instruction.envelope, RecordDict())
        self._answer(pending, error_reply(error, asked))

    def _answer(self, pending: Pending, message: Message, **arrived: Any) -> None:
        asked = pending.instruction
        self.trail.answered(asked.site, asked.envelope, message, **arrived)
        del self._pending[pending.id]
        self._partial.pop(pending.id, None)
        pending.slots.waiting.pop(pending.id, None)
        pending.answer(Reply(message, pending.slots if pending.granted else None))

    def _pending_of(self, session: Session, instruction: str) -> Pending | None:
        """What ``instruction`` is pending for, if it is this session's to answer."""
        pending = self._pending.get(instruction)
        return pending if pending and pending.instruction.site == session.site else None

    def _settle_unasked(self, session: Session, instructions: Iterable[str], *, late: bool) -> None:
        """A site holds replies that nobody waits for: those that nobody ever will, it may forget.

        Args:
            late: whether they have only just been announced.
        """
        done = []
        for each in instructions:
            entry = self.journal.entry(each)
            if entry is None:
                done.append(each)
                continue
            if entry.site != session.site:
                raise WireError(f"site {session.site} answers instruction {each} of another site")
            session.finished(each)
            if self._abandoned.pop(each, None) is not None:
                self.trail.late(session.site, each)
            if entry.state is State.ABANDONED or (late and entry.state is not State.OWED):
                self._tell_late(session, each)
            if entry.state is State.SETTLED:
                self._late.discard(each)
                done.append(each)
        if done:
            session.settle(done)

    def _tell_late(self, session: Session, instruction: str) -> None:
        if instruction not in self._late:
            self.complaints.tell(session.site, "a reply came too late")
            self.metrics.replies.labels(session.site, "late").inc()
            self._late.add(instruction)

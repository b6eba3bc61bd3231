"""Instructions to the sites behind a SuperLink, and their replies.

What a SuperLink has is asked for again and again. One thread does that: it sends what is pending
to the sites that are there, and pulls what was answered, at most so many replies at a time as
there is room for.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from types import TracebackType
from typing import Self, cast

from flwr.app import Message, RecordDict
from hanse.arrays import as_flowers
from hanse.digests import arrays_digest
from hanse.errors import HanseError, LostError, WireError
from hanse.flower import LOST_ON_THE_WAY, SERVER_NODE_ID, Envelope, error_reply, open_envelope
from hanse.identity import node_id_of
from hanse.superlink import SLIP, Slip
from hanse.wire import hanse_pb2 as pb
from hanse.wire.content import arrays_of, descriptors, restore
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded, encode

from hanse_server.audit import ServerTrail
from hanse_server.journal import Entry, Journal, State
from hanse_server.link import Instruction, Reply, Slots
from hanse_server.link.instruction import put_down
from hanse_server.metrics import ServerMetrics
from hanse_server.superlink.nodes import Nodes
from hanse_server.superlink.post import Post

log = logging.getLogger("hanse.link")

POLL_SECONDS = 0.5
NODES_SECONDS = 2.0
"""How often it is looked who is there."""

SEND_AGAIN_SECONDS = 5.0
"""Before an instruction that was lost on the way is sent again."""

GOODBYE_SECONDS = 30.0
"""How long the end of a run waits until the sites know what is settled."""

MOST_PULLED = 64


@dataclass(eq=False)
class Pending:
    """An instruction without a reply.

    Attributes:
        sent_as: Flower's id of its message; None while it is not on its way.
        settling: what its slip says that the site may forget.
        not_before: when it may be sent, by the monotonic clock.
    """

    instruction: Instruction
    answer: Callable[[Reply], None]
    slots: Slots
    sent_as: str | None = None
    settling: tuple[str, ...] = ()
    not_before: float = 0.0


class SuperLink:
    """What :class:`hanse_server.grpc_grid.GrpcGrid` asks of a link, over Flower's Grid.

    Args:
        limits: what is taken from a site at most.
    """

    def __init__(
        self,
        post: Post,
        run_id: int,
        *,
        journal: Journal,
        metrics: ServerMetrics,
        trail: ServerTrail,
        limits: Limits,
    ) -> None:
        self._post = post
        self._journal = journal
        self._metrics = metrics
        self._trail = trail
        self._limits = limits
        known = {entry.site for entry in journal.unsettled()}
        self._nodes = Nodes(post, run_id, metrics, trail, known, self._holds)
        self._lock = threading.RLock()  # over what follows
        self._pending: dict[str, Pending] = {}
        self._settled: dict[str, list[str]] = {}
        self._contents: dict[int, tuple[Encoded, RecordDict]] = {}
        self._received = self._sent = 0
        self._looked = -math.inf
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="hanse-superlink", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    # --- what the grid asks for ---------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """What is taken from a site at most, whatever it was asked."""
        return self._limits

    def connected(self) -> Mapping[int, str]:
        """The names of the sites that are there now, by node id as Hanse has it."""
        return {node_id_of(name): name for name in self._nodes.sites.values()}

    def registered(self) -> Mapping[int, str]:
        """The names of all sites that are there or were, likewise."""
        return {node_id_of(name): name for name in self._nodes.known}

    def owed(self, run_id: int) -> list[Entry]:
        """What sites were asked in a run, and is neither given up nor settled."""
        return [
            entry
            for entry in self._journal.unsettled()
            if entry.run_id == run_id and entry.state is not State.ABANDONED
        ]

    def traffic(self) -> tuple[int, int]:
        """Bytes of payload received and sent so far."""
        return self._received, self._sent

    def push(
        self, instructions: Collection[Instruction], answer: Callable[[Reply], None], slots: Slots
    ) -> None:
        """Put durably down that replies are owed, then send.

        Args:
            answer: is called on the link's thread with each reply as it arrives.
        """
        put_down(self._trail, self._journal, instructions)
        with self._lock:
            self._pending |= {each.id: Pending(each, answer, slots) for each in instructions}
        self._wake.set()

    def take(self, reply: Reply) -> None:
        """The app has taken a reply."""
        self._journal.mark([reply.message.metadata.reply_to_message_id], State.RECEIVED)
        if reply.slots is not None:
            with self._lock:
                reply.slots.free += 1

    def abandon(self, instructions: Collection[str]) -> None:
        """The app goes on without the replies to these."""
        self._journal.mark(instructions, State.ABANDONED)
        with self._lock:
            for each in instructions:
                pending = self._pending.pop(each, None)
                if pending is not None:
                    asked = pending.instruction
                    self._trail.abandoned(asked.site, asked.envelope)

    def outdate(self, instructions: Collection[str]) -> None:
        """The app waits for these still, and goes on meanwhile: they are not sent again."""
        with self._lock:
            for each in self._pending.keys() & set(instructions):
                pending = self._pending[each]
                pending.instruction = replace(pending.instruction, encoded=None)

    def settle(self, *, keep: Collection[str] = (), only: Collection[str] | None = None) -> None:
        """Nobody will ask again for anything but ``keep``; or, of ``only`` these, for any.

        The sites may forget what is settled.
        """
        entries = self._journal.settle(keep=keep, only=only)
        self._trail.settled(entries)
        with self._lock:
            for entry in entries:
                self._settled.setdefault(entry.site, []).append(entry.instruction)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._try(self._go_round)
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
        self._try(self._say_goodbye)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:
            # The outermost loop of this thread: a SuperLink that is out of reach may come back.
            log.exception("the SuperLink could not be asked")

    def _go_round(self) -> None:
        now = time.monotonic()
        if now - self._looked >= NODES_SECONDS:
            self._looked = now
            gone = self._nodes.look(now)
            with self._lock:
                for pending in self._pending.values():
                    if pending.instruction.site in gone:
                        pending.sent_as = None  # its next node will be sent it
        self._nodes.listen()
        self._send(now)
        self._pull(now)

    def _holds(self, site: str, held: list[str]) -> None:
        """A site has come with these replies: of some an earlier process settled, and died before
        the site knew. What this journal does not know may be another run's, and stays."""
        entries = [entry for each in held if (entry := self._journal.entry(each)) is not None]
        done = [
            entry.instruction
            for entry in entries
            if entry.site == site and entry.state is State.SETTLED
        ]
        with self._lock:
            untold = self._settled.setdefault(site, [])
            untold += [each for each in done if each not in untold]

    def _send(self, now: float) -> None:
        """Send what is pending to the sites that are there."""
        with self._lock:
            waiting = [
                pending
                for pending in self._pending.values()
                if pending.sent_as is None and pending.not_before <= now
            ]
        for pending in waiting:
            node = self._nodes.of(pending.instruction.site)
            if node is None:
                continue
            try:
                self._send_to(node, pending)
            except HanseError as error:
                self._fail(pending, error)

    def _send_to(self, node: int, pending: Pending) -> None:
        asked, encoded = pending.instruction, pending.instruction.encoded
        if encoded is None:
            raise LostError(f"site {asked.site!r} has lost what it was at")
        with self._lock:
            pending.settling = tuple(self._settled.get(asked.site, ()))
        slip = Slip(instruction=asked.id, run_id=asked.envelope.run_id, settled=pending.settling)
        content = RecordDict({**self._content(encoded), SLIP: slip.record()})
        envelope = asked.envelope
        pending.sent_as = self._post.send(
            node, content, envelope.message_type, envelope.group_id, envelope.ttl
        )
        self._sent += encoded.body_size
        self._metrics.sent_bytes.labels(asked.site).inc(encoded.body_size)

    def _content(self, encoded: Encoded) -> RecordDict:
        """The records that were encoded, with the very bytes of their arrays; kept while shared."""
        known = self._contents.get(id(encoded))
        if known is None:
            described = pb.Content.FromString(encoded.content)
            body = BytesIO(b"".join(encoded.body))
            bodies = (body.read(array.size) for array in descriptors(described))
            content = as_flowers(cast(RecordDict, restore(described, bodies)))
            known = encoded, content
            self._contents = {id(encoded): known}  # the last one: a round's is sent in a row
        return known[1]

    def _pull(self, now: float) -> None:
        """Take in replies, as many as there is room for."""
        for slots, pending in self._on_their_way():
            waiting = list(pending)
            while waiting and slots.free > 0:
                room = int(min(slots.free, MOST_PULLED))
                batch, waiting = waiting[:room], waiting[room:]
                for message in self._post.pull(batch):
                    self._arrived(pending[message.metadata.reply_to_message_id], message, now)

    def _on_their_way(self) -> Iterator[tuple[Slots, dict[str, Pending]]]:
        """What was sent, by Flower's ids, for each of the exchanges that wait for replies."""
        exchanges: dict[int, tuple[Slots, dict[str, Pending]]] = {}
        with self._lock:
            for pending in self._pending.values():
                if pending.sent_as is not None:
                    slots = pending.slots
                    _, sent = exchanges.setdefault(id(slots), (slots, {}))
                    sent[pending.sent_as] = pending
        yield from exchanges.values()

    def _arrived(self, pending: Pending, message: Message, now: float) -> None:
        if message.has_error() and message.error.code in LOST_ON_THE_WAY:
            log.warning(
                "the SuperLink has lost a message to %s or its reply: it is sent again",
                pending.instruction.site,
            )
            pending.sent_as, pending.not_before = None, now + SEND_AGAIN_SECONDS
            return
        with self._lock:
            site = pending.instruction.site
            told = set(pending.settling)
            self._settled[site] = [each for each in self._settled.get(site, ()) if each not in told]
        try:
            self._take_in(pending, message)
        except WireError as error:
            self._fail(pending, error)

    def _take_in(self, pending: Pending, message: Message) -> None:
        asked, metadata = pending.instruction, message.metadata
        content = message.error if message.has_error() else message.content
        encoded = encode(content)
        if encoded.body_size > asked.limits.max_body_bytes:
            raise WireError(
                f"a reply of {encoded.body_size} bytes passes the limit, "
                f"{asked.limits.max_body_bytes}"
            )
        if metadata.message_type != asked.envelope.message_type:
            raise WireError(f"a reply of {asked.site} is of another type than asked for")
        envelope = Envelope(
            message_id=metadata.message_id,
            run_id=asked.envelope.run_id,
            src_node_id=asked.envelope.dst_node_id,
            dst_node_id=SERVER_NODE_ID,
            message_type=asked.envelope.message_type,
            group_id=asked.envelope.group_id,
            reply_to=asked.id,
            created_at=metadata.created_at,
            ttl=metadata.ttl,
        )
        self._received += encoded.body_size
        self._metrics.received_bytes.labels(asked.site).inc(encoded.body_size)
        self._answer(
            pending,
            open_envelope(envelope, content),
            digest=encoded.digest.hex(),
            bytes=encoded.body_size,
            blake3=arrays_digest(arrays_of(content)).hex() if encoded.body else None,
        )

    def _fail(self, pending: Pending, error: HanseError) -> None:
        log.warning("%s: %s", pending.instruction.site, error)
        asked = open_envelope(pending.instruction.envelope, RecordDict())
        self._answer(pending, error_reply(error, asked))

    def _answer(self, pending: Pending, message: Message, **arrived: str | int | None) -> None:
        asked = pending.instruction
        with self._lock:
            if self._pending.pop(asked.id, None) is not pending:  # abandoned meanwhile
                self._trail.late(asked.site, asked.id)
                self._metrics.replies.labels(asked.site, "late").inc()
                return
            pending.slots.free -= 1
        self._trail.answered(asked.site, asked.envelope, message, **arrived)
        pending.answer(Reply(message, pending.slots))

    def _say_goodbye(self) -> None:
        """Let the sites that are there know what is settled, before the run ends."""
        with self._lock:
            told = {
                node: self._settled[site]
                for node, site in self._nodes.sites.items()
                if self._settled.get(site)
            }
        awaited = {self._nodes.greet(node, settled) for node, settled in told.items()}
        deadline = time.monotonic() + GOODBYE_SECONDS
        while awaited and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            awaited -= {each.metadata.reply_to_message_id for each in self._post.pull(awaited)}

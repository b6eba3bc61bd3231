"""Flower's Grid over the link: messages to real sites, replies as they arrive."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Protocol

from flwr.app import Message
from hanse.flower import SERVER_NODE_ID, Envelope
from hanse.identity import node_id_of
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded, encode

from hanse_server.grid import HanseGrid, Replies
from hanse_server.journal import Entry
from hanse_server.link import Instruction, Reply, Slots
from hanse_server.status import Awaited

log = logging.getLogger("hanse.grid")

REPLIES_IN_MEMORY = 8
TTL_SECONDS = 12 * 3600.0

Bounds = Callable[[Message, Encoded, Limits], Limits]
"""An instruction, its content, and bounds that hold in any case, to those of its reply."""


class Link(Protocol):
    """What carries instructions to sites, by their names, and their replies back: Hanse's own
    :class:`hanse_server.link.LinkServer`, or :class:`hanse_server.superlink.SuperLink`."""

    @property
    def limits(self) -> Limits:
        """What is taken from a site at most."""

    def connected(self) -> Mapping[int, str]:
        """The names of the sites that are there now, by node id."""

    def registered(self) -> Mapping[int, str]:
        """The names of all sites that may come, by node id."""

    def owed(self, run_id: int) -> list[Entry]:
        """What sites were asked in a run, and is neither given up nor settled."""

    def traffic(self) -> tuple[int, int]:
        """Bytes of payload received and sent so far."""

    def push(
        self, instructions: Collection[Instruction], answer: Callable[[Reply], None], slots: Slots
    ) -> None:
        """Note durably that replies are owed, then send."""

    def take(self, reply: Reply) -> None:
        """The app has taken a reply."""

    def abandon(self, instructions: Collection[str]) -> None:
        """The app goes on without the replies to these."""

    def outdate(self, instructions: Collection[str]) -> None:
        """The app waits for these still, and goes on meanwhile: they are not sent again."""

    def settle(self, *, keep: Collection[str] = (), only: Collection[str] | None = None) -> None:
        """Nobody will ask again for anything but ``keep``; or, of ``only`` these, for any."""


class GrpcGrid(HanseGrid):
    """A grid over a link; to be used from one thread.

    Ids are a function of the run, the receiver and the content, so that a server which was
    restarted asks for the same thing under the same id, and the sites answer from their
    outboxes.

    Args:
        auto_settle: settle what was answered whenever the app sends again: for apps that know
            nothing of :meth:`settle`, and cannot go on after a crash.
        bounds: what a reply may be at most; the link's limits for all if None.
    """

    def __init__(
        self,
        link: Link,
        run_id: int,
        *,
        auto_settle: bool = False,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(run_id)
        self._link = link
        self._bounds = bounds
        self._auto_settle = auto_settle
        self._awaited: dict[str, Awaited] = {}
        self._arrived: dict[str, Reply] = {}
        self._open: dict[str, Envelope] = {}  # collected, and not answered yet
        self._collected: SimpleQueue[Reply] = SimpleQueue()
        self._slots = Slots(REPLIES_IN_MEMORY)
        self._sent: Counter[str] = Counter()

    def get_node_ids(self) -> Sequence[int]:
        return sorted(self._link.connected())

    def site_name(self, node_id: int) -> str:
        connected = self._link.connected()
        return connected.get(node_id) or self._link.registered().get(node_id, str(node_id))

    def awaited(self) -> Sequence[Awaited]:
        return list(self._awaited.values())

    def owing(self, group_id: str) -> frozenset[str]:
        owed = self._link.owed(self.run_id)
        return frozenset(entry.site for entry in owed if entry.group_id == group_id)

    def traffic(self) -> tuple[int, int]:
        return self._link.traffic()

    def settle(self) -> None:
        self._link.settle(keep=set(self._awaited))
        if not self._auto_settle:
            self._sent.clear()  # what was sent is never sent again: the next round is another

    def settle_kept(self, instructions: Collection[str]) -> None:
        self._link.settle(only=instructions)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages whose replies :meth:`pull_messages` will give, however many there are."""

        def keep(reply: Reply) -> None:
            self._arrived[reply.message.metadata.reply_to_message_id] = reply

        pushed = self._push(messages, keep, Slots(math.inf), until=math.inf)
        return [each.id for each in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have arrived, each once."""
        found = (self._arrived.pop(each, None) for each in message_ids)
        return [self._take(reply) for reply in found if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Replies:
        replies: SimpleQueue[Reply] = SimpleQueue()
        seconds = math.inf if timeout is None else timeout
        deadline = time.monotonic() + seconds
        slots = Slots(REPLIES_IN_MEMORY, deadline)
        instructions = self._push(messages, replies.put, slots, until=time.time() + seconds)
        return self._receive({each.id for each in instructions}, replies, deadline)

    def _receive(self, missing: set[str], replies: SimpleQueue[Reply], deadline: float) -> Replies:
        try:
            while missing and (reply := _next(replies, deadline)) is not None:
                # Before it is taken: a journal that cannot be written ends the round meanwhile.
                missing.discard(reply.message.metadata.reply_to_message_id)
                yield self._take(reply)
        finally:
            if missing:
                self._abandon(missing)

    # --- replies that may come in a later round ---------------------------------------------

    def collect(self, messages: Iterable[Message], *, timeout: float) -> Replies:
        deadline, until = time.monotonic() + timeout, time.time() + timeout
        for each in self._open:
            self._awaited[each] = replace(self._awaited[each], until=until)
        self._slots.until = deadline
        self._keep_open(self._push(messages, self._collected.put, self._slots, until=until))
        return self._collect(deadline)

    def working(self) -> Mapping[int, str]:
        return {each.dst_node_id: each.group_id for each in self._open.values()}

    def take_up(self, message_type: str, group_id: str) -> None:
        connected = set(self._link.connected().values())
        instructions = [
            _without_body(entry, self._link.limits)
            for entry in self._link.owed(self.run_id)
            if entry.message_type == message_type
            and (entry.group_id != group_id or entry.site not in connected)
        ]
        self._keep_open(instructions)
        self._send(instructions, self._collected.put, self._slots, until=math.inf)

    def give_up(self, node_ids: Collection[int]) -> None:
        behind = {id_ for id_, each in self._open.items() if each.dst_node_id in node_ids}
        for each in behind:
            del self._open[each]
        if behind:
            self._abandon(behind)

    def _keep_open(self, instructions: Iterable[Instruction]) -> None:
        self._open |= {each.id: each.envelope for each in instructions}

    def _collect(self, deadline: float) -> Replies:
        try:
            while self._open and (reply := _next(self._collected, deadline)) is not None:
                owed = self._open.pop(reply.message.metadata.reply_to_message_id, None)
                message = self._take(reply)
                if owed is not None:  # and not given up meanwhile
                    yield message
        finally:
            self._link.outdate(list(self._open))

    # --- what all of them do ----------------------------------------------------------------

    def _push(
        self,
        messages: Iterable[Message],
        answer: Callable[[Reply], None],
        slots: Slots,
        *,
        until: float,
    ) -> list[Instruction]:
        if self._auto_settle:
            self.settle()
        instructions = list(self._address(messages))
        self._send(instructions, answer, slots, until=until)
        return instructions

    def _send(
        self,
        instructions: list[Instruction],
        answer: Callable[[Reply], None],
        slots: Slots,
        *,
        until: float,
    ) -> None:
        now = time.time()
        for each in instructions:
            self._awaited[each.id] = Awaited(site=each.site, since=now, until=until)
        self._link.push(instructions, answer, slots)

    def _address(self, messages: Iterable[Message]) -> Iterator[Instruction]:
        """Each message with its id; a content that many share is encoded once."""
        encoded: dict[int, Encoded] = {}
        kept = list(messages)  # as long as an object lives, no other has its id()
        for message in kept:
            content = message.content
            if id(content) not in encoded:
                encoded[id(content)] = encode(content)
            body = encoded[id(content)]
            yield Instruction(
                site=self.site_name(message.metadata.dst_node_id),
                envelope=Envelope.of(message, self._message_id(message, body)),
                encoded=body,
                limits=self._limits_of(message, body),
            )

    def _limits_of(self, asked: Message, encoded: Encoded) -> Limits:
        limits = self._link.limits
        return limits if self._bounds is None else self._bounds(asked, encoded, limits)

    def _message_id(self, message: Message, encoded: Encoded) -> str:
        data = message.metadata
        parts = (self.run_id, data.message_type, data.group_id, data.dst_node_id)
        what = "\0".join([*map(str, parts), encoded.digest.hex()])
        ordinal = self._sent[what]
        self._sent[what] += 1
        return hashlib.sha256(f"{what}\0{ordinal}".encode()).hexdigest()[:32]

    def _take(self, reply: Reply) -> Message:
        self._awaited.pop(reply.message.metadata.reply_to_message_id, None)
        self._link.take(reply)
        return reply.message

    def _abandon(self, instructions: set[str]) -> None:
        sites = sorted(self._awaited.pop(each).site for each in instructions)
        told = ", ".join(sites[:10])
        log.warning("going on without the replies of %d sites: %s", len(sites), told)
        self._link.abandon(instructions)


def _next(replies: SimpleQueue[Reply], deadline: float) -> Reply | None:
    """The next reply; None if there is none by ``deadline``, in monotonic seconds."""
    left = deadline - time.monotonic()
    try:
        return replies.get(timeout=None if left == math.inf else max(left, 0))
    except Empty:
        return None


def _without_body(entry: Entry, limits: Limits) -> Instruction:
    """What an earlier process asked of a site: its reply is wanted still, whose round is over."""
    envelope = Envelope(
        message_id=entry.instruction,
        run_id=entry.run_id,
        src_node_id=SERVER_NODE_ID,
        dst_node_id=node_id_of(entry.site),
        message_type=entry.message_type,
        group_id=entry.group_id,
        created_at=time.time(),
        ttl=TTL_SECONDS,
    )
    return Instruction(site=entry.site, envelope=envelope, encoded=None, limits=limits)

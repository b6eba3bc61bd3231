"""Flower's Grid over the link: messages to real sites, replies as they arrive."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue

from flwr.app import Message
from hanse.flower import Envelope
from hanse.wire.message import Encoded, encode

from hanse_server.grid import HanseGrid
from hanse_server.link import Instruction, LinkServer, Reply, Slots
from hanse_server.status import Awaited

log = logging.getLogger("hanse.grid")

REPLIES_IN_MEMORY = 8


class GrpcGrid(HanseGrid):
    """A grid over a :class:`LinkServer`; to be used from one thread.

    Ids are a function of the run, the receiver and the content, so that a server which was
    restarted asks for the same thing under the same id, and the sites answer from their
    outboxes.

    Args:
        auto_settle: settle what was answered whenever the app sends again: for apps that know
            nothing of :meth:`settle`, and cannot go on after a crash.
    """

    def __init__(self, link: LinkServer, run_id: int, *, auto_settle: bool = False) -> None:
        super().__init__(run_id)
        self._link = link
        self._auto_settle = auto_settle
        self._awaited: dict[str, Awaited] = {}
        self._arrived: dict[str, Reply] = {}
        self._sent: Counter[str] = Counter()

    def get_node_ids(self) -> Sequence[int]:
        return sorted(self._link.connected())

    def site_name(self, node_id: int) -> str:
        connected = self._link.connected()
        return connected.get(node_id) or self._link.registered().get(node_id, str(node_id))

    def awaited(self) -> Sequence[Awaited]:
        return list(self._awaited.values())

    def owing(self) -> frozenset[str]:
        return self._link.owing(self.run_id)

    def traffic(self) -> tuple[int, int]:
        return self._link.traffic()

    def settle(self) -> None:
        self._link.settle(keep=set(self._awaited))
        if not (self._auto_settle or self._awaited):
            self._sent.clear()  # what was sent is never sent again: the next round is another

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages whose replies :meth:`pull_messages` will give, however many there are."""

        def keep(reply: Reply) -> None:
            self._arrived[reply.message.metadata.reply_to_message_id] = reply

        return self._push(messages, keep, Slots(math.inf), until=math.inf)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have arrived, each once."""
        found = (self._arrived.pop(each, None) for each in message_ids)
        return [self._take(reply) for reply in found if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send at once; yield replies as they arrive, until all are in or ``timeout`` is over.

        A reply that comes later is dropped, and so is one that comes after the iterator was
        closed.
        """
        replies: SimpleQueue[Reply] = SimpleQueue()
        seconds = math.inf if timeout is None else timeout
        deadline = time.monotonic() + seconds
        slots = Slots(REPLIES_IN_MEMORY)
        instructions = self._push(messages, replies.put, slots, until=time.time() + seconds)
        return self._receive(instructions, replies, deadline)

    def _receive(
        self, instructions: Iterable[str], replies: SimpleQueue[Reply], deadline: float
    ) -> Iterator[Message]:
        missing = set(instructions)
        try:
            while missing:
                left = deadline - time.monotonic()
                try:
                    reply = replies.get(timeout=None if left == math.inf else max(left, 0))
                except Empty:
                    break
                message = self._take(reply)
                missing.discard(message.metadata.reply_to_message_id)
                yield message
        finally:
            if missing:
                self._give_up(missing)

    def _push(
        self,
        messages: Iterable[Message],
        answer: Callable[[Reply], None],
        slots: Slots,
        *,
        until: float,
    ) -> list[str]:
        if self._auto_settle:
            self.settle()
        instructions = list(self._address(messages))
        now = time.time()
        for each in instructions:
            self._awaited[each.id] = Awaited(site=each.site, since=now, until=until)
        self._link.push(instructions, answer, slots)
        return [each.id for each in instructions]

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
            )

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

    def _give_up(self, instructions: set[str]) -> None:
        sites = sorted(self._awaited.pop(each).site for each in instructions)
        log.warning("no reply in time from %d sites: %s", len(sites), ", ".join(sites[:10]))
        self._link.abandon(instructions)

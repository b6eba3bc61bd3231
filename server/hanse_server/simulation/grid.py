"""A grid whose sites live on this machine, driven by an engine in place of a network."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from flwr.app import ArrayRecord, Context, Message, RecordDict
from hanse.flower import identified, size_of
from hanse.identity import node_id_of

from hanse_server.grid import HanseGrid, Replies
from hanse_server.status import Awaited


class Engine(Protocol):
    """Executes instructions by the ClientApp of the simulated sites."""

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the reply to each message, as it is ready."""

    def close(self) -> None:
        """Free what the engine holds."""


class LocalGrid(HanseGrid):
    """Sites on this machine; all of them are there, always.

    Args:
        sites: their names.
        engine: what executes instructions.
    """

    def __init__(self, run_id: int, sites: Sequence[str], engine: Engine) -> None:
        super().__init__(run_id)
        self._names = {node_id_of(name): name for name in sites}
        self._nodes = tuple(sorted(self._names))
        self._engine = engine
        self._sent = self._received = self._count = 0
        self._pushed: dict[str, Message] = {}
        self._awaited: dict[str, Awaited] = {}
        self._collecting: deque[Replies] = deque()
        self._working: dict[int, str] = {}
        self._given_up: set[str] = set()

    def get_node_ids(self) -> Sequence[int]:
        """The node ids of all sites, ascending."""
        return self._nodes

    def site_name(self, node_id: int) -> str:
        """The name of a site."""
        return self._names.get(node_id, str(node_id))

    def awaited(self) -> Sequence[Awaited]:
        """Whose replies are awaited."""
        return tuple(self._awaited.values())

    def owing(self, group_id: str) -> frozenset[str]:
        """None: simulated sites end with their process."""
        return frozenset()

    def traffic(self) -> tuple[int, int]:
        """Bytes of arrays received and sent: what would have crossed the wire."""
        return self._received, self._sent

    def settle(self) -> None:
        """Nothing to do: no site keeps a reply."""

    def settle_kept(self, instructions: Collection[str]) -> None:
        """Nothing to do: simulated sites end with their process."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled; returns their ids."""
        asked = self._ask(messages)
        self._pushed |= {message.metadata.message_id: message for message in asked}
        return [message.metadata.message_id for message in asked]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Execute the messages of these ids that were not pulled yet."""
        due = [self._pushed.pop(each) for each in message_ids if each in self._pushed]
        return list(self._execute(due))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Replies:
        """Yield each reply as it is ready; simulated sites take the time they take."""
        return self._execute(self._ask(messages))

    def collect(self, messages: Iterable[Message], *, timeout: float) -> Replies:
        """Yield each reply as it is ready, those to earlier calls first.

        Sites are as fast as this machine: who was asked first answers first.
        """
        asked = self._ask(messages)
        self._working |= {each.metadata.dst_node_id: each.metadata.group_id for each in asked}
        self._collecting.append(self._execute(asked))
        return self._collect()

    def working(self) -> Mapping[int, str]:
        """The sites that :meth:`collect` has asked and not heard of."""
        return dict(self._working)

    def take_up(self, message_type: str, group_id: str) -> None:
        """Nothing to do: simulated sites end with their process."""

    def give_up(self, node_ids: Collection[int]) -> None:
        """Leave the replies of these sites out."""
        names = {self.site_name(node) for node in node_ids}
        for message_id, awaited in list(self._awaited.items()):
            if awaited.site in names:
                del self._awaited[message_id]
                self._given_up.add(message_id)
        for node in node_ids:
            self._working.pop(node, None)

    def _collect(self) -> Replies:
        while self._collecting:
            for reply in self._collecting[0]:
                asked = reply.metadata.reply_to_message_id
                if asked in self._given_up:
                    self._given_up.discard(asked)
                    continue
                self._working.pop(reply.metadata.src_node_id, None)
                yield reply
            self._collecting.popleft()

    def _execute(self, messages: Sequence[Message]) -> Replies:
        for reply in self._engine.execute(messages):
            self._awaited.pop(reply.metadata.reply_to_message_id, None)
            self._received += _array_bytes(reply)
            yield reply

    def _ask(self, messages: Iterable[Message]) -> list[Message]:
        """The messages under ids of their own; from now on their replies are awaited."""
        asked, now = [], time.time()
        content, size = None, 0
        for message in messages:
            self._count += 1
            message_id = f"{self.run_id:016x}{self._count:016x}"
            name = self.site_name(message.metadata.dst_node_id)
            self._awaited[message_id] = Awaited(site=name, since=now, until=0.0)
            if message.content is not content:  # sites are mostly sent the same
                content, size = message.content, _array_bytes(message)
            self._sent += size
            asked.append(identified(message, message_id))
        return asked


def context_of(message: Message, site: str) -> Context:
    """The context in which a simulated site answers its first message."""
    return Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config={"site": site},
        state=RecordDict(),
        run_config={},
    )


def _array_bytes(message: Message) -> int:
    if message.has_error():
        return 0
    records = [each for each in message.content.values() if isinstance(each, ArrayRecord)]
    return sum(size_of(array) for record in records for array in record.values())

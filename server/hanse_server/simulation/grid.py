"""A grid whose sites live on this machine, driven by an engine in place of a network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from flwr.app import Context, Message, RecordDict
from hanse.flower import Envelope, open_envelope
from hanse.identity import node_id_of

from hanse_server.grid import HanseGrid
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
        self._engine = engine
        self._sent = self._received = self._count = 0
        self._pushed: dict[str, Message] = {}
        self._awaited: dict[str, Awaited] = {}

    def get_node_ids(self) -> Sequence[int]:
        """The node ids of all sites, ascending."""
        return sorted(self._names)

    def site_name(self, node_id: int) -> str:
        """The name of a site."""
        return self._names.get(node_id, str(node_id))

    def awaited(self) -> Sequence[Awaited]:
        """Whose replies are awaited."""
        return tuple(self._awaited.values())

    def owing(self) -> frozenset[str]:
        """None: simulated sites end with their process."""
        return frozenset()

    def traffic(self) -> tuple[int, int]:
        """Bytes of arrays received and sent: what would have crossed the wire."""
        return self._received, self._sent

    def settle(self) -> None:
        """Nothing to do: no site keeps a reply."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are pulled; returns their ids."""
        numbered = [self._number(message) for message in messages]
        self._pushed |= {message.metadata.message_id: message for message in numbered}
        return [message.metadata.message_id for message in numbered]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Execute the messages of these ids that were not pulled yet."""
        due = [self._pushed.pop(each) for each in message_ids if each in self._pushed]
        return list(self._execute(due))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield each reply as it is ready; simulated sites take the time they take."""
        return self._execute([self._number(message) for message in messages])

    def _execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        now = time.time()
        for message in messages:
            name = self.site_name(message.metadata.dst_node_id)
            self._awaited[message.metadata.message_id] = Awaited(site=name, since=now, until=0.0)
            self._sent += _array_bytes(message)
        for reply in self._engine.execute(messages):
            self._awaited.pop(reply.metadata.reply_to_message_id, None)
            self._received += _array_bytes(reply)
            yield reply

    def _number(self, message: Message) -> Message:
        self._count += 1
        message_id = f"{self.run_id:016x}{self._count:016x}"
        return open_envelope(Envelope.of(message, message_id), message.content)


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
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())

"""Flower's Grid of a SuperLink in this process: its nodes are sites, and messages get lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.app import Error as FlowerError
from flwr.serverapp import Grid
from hanse.flower import Envelope, become_server_app, open_envelope
from hanse.superlink import HELLO
from hanse_client.node import answer_message

NODE_UNAVAILABLE = 5


class FakeSuperLink(Grid):
    """Carries each message out when its reply is pulled.

    Args:
        nodes: the configuration of each node.

    Attributes:
        lose: how many messages of a type are to be lost, before they reach their node.
        lose_replies: likewise, after they were carried out.
        asked: all messages but those for names, in their order.
    """

    def __init__(self, nodes: dict[int, dict[str, Any]], run_id: int = 99) -> None:
        become_server_app(run_id)
        self.nodes = nodes
        self.lose: dict[str, int] = {}
        self.lose_replies: dict[str, int] = {}
        self.asked: list[Message] = []
        self.greetings = 0
        self._run_id = run_id
        self._waiting: dict[str, Message] = {}
        self._count = 0

    def set_run(self, run: Any) -> None:
        """Not asked for."""

    @property
    def run(self) -> Any:
        """Not asked for."""
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not asked for."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Those that are there."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in, under ids of this SuperLink."""
        ids = []
        for message in messages:
            assert message.metadata.run_id == self._run_id
            self._count += 1
            message_id = f"{self._count:064x}"
            self._waiting[message_id] = open_envelope(
                Envelope.of(message, message_id), message.content
            )
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the nodes answer."""
        return [
            self._carry_out(self._waiting.pop(each))
            for each in message_ids
            if each in self._waiting
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Not asked for."""
        raise NotImplementedError

    def _carry_out(self, message: Message) -> Message:
        kind = message.metadata.message_type
        if kind == HELLO:
            self.greetings += 1
        else:
            self.asked.append(message)
        lost = Message(FlowerError(NODE_UNAVAILABLE, "lost"), reply_to=message)
        if _counted(self.lose, kind):
            return lost
        config = self.nodes.get(message.metadata.dst_node_id)
        if config is None:
            return lost
        reply = answer_message(message, context_of(config, message))
        return lost if _counted(self.lose_replies, kind) else reply


def context_of(config: dict[str, Any], message: Message) -> Context:
    """As a SuperNode makes it."""
    return Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config=config,
        state=RecordDict(),
        run_config={},
    )


def node_of(site: Path) -> dict[str, Any]:
    """The configuration of a site's node."""
    return {"site": str(site)}


def _counted(left: dict[str, int], kind: str) -> bool:
    if left.get(kind, 0) == 0:
        return False
    left[kind] -= 1
    return True

"""What is used of Flower's Grid: to whom a message can go, sending it, pulling its reply."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from hanse.errors import WireError
from hanse.flower import Sender


class Post:
    """Flower's Grid, under the identity that Flower gave this process; used by one thread.

    A round loop makes this process the ServerApp of a run of Hanse's, which keeps its number
    when it goes on; to the SuperLink it stays what the SuperLink started.
    """

    def __init__(self, grid: Grid, sender: Sender) -> None:
        self._grid = grid
        self._sender = sender

    def nodes(self) -> set[int]:
        """Flower's ids of the nodes that are there."""
        return set(self._grid.get_node_ids())

    def send(
        self, node: int, content: RecordDict, message_type: str, group_id: str, ttl: float
    ) -> str:
        """Send a message; Flower's id of it.

        Raises:
            WireError: if the SuperLink does not take it.
        """
        message = self._sender.message(
            content, node, message_type=message_type, group_id=group_id, ttl=ttl
        )
        taken = list(self._grid.push_messages([message]))
        if not taken or not taken[0]:
            raise WireError(
                f"the SuperLink does not take a {message_type} message",
                remedy="The SuperLink's log says why; it may be too large.",
            )
        return str(taken[0])

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, each once."""
        return list(self._grid.pull_messages(list(message_ids)))

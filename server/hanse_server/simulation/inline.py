"""The engine that runs every site in this process, one after the other, without serialisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from hanse.flower import answer

from hanse_server.simulation.grid import context_of


class InlineEngine:
    """Calls the ClientApp for each message, in order.

    Args:
        app: the sites' ClientApp.
        sites: node id -> name.
    """

    def __init__(self, app: ClientApp, sites: Mapping[int, str]) -> None:
        self._app = app
        self._sites = sites
        self._contexts: dict[int, Context] = {}

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the reply to each message, in the order of the messages."""
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._contexts:
                self._contexts[node] = context_of(message, self._sites[node])
            context = self._contexts[node]
            yield answer(lambda each, context=context: self._app(each, context), message)  # type: ignore[misc]

    def close(self) -> None:
        """Nothing is held."""

"""The engine that hands a whole round's messages over, so that its sites are trained together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Context, Message
from hanse.simulation import CohortApp

from hanse_server.simulation.grid import context_of


class VectorisedEngine:
    """Has the messages of a call answered by an app that knows how to train many sites at once.

    Args:
        app: of the sites.
        sites: node id -> name.
    """

    def __init__(self, app: CohortApp, sites: Mapping[int, str]) -> None:
        self._app = app
        self._sites = sites
        self._contexts: dict[int, Context] = {}

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the reply to each message, in the order of the messages."""
        asked = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._contexts:
                self._contexts[node] = context_of(message, self._sites[node])
            asked.append((message, self._contexts[node]))
        yield from self._app(asked)

    def close(self) -> None:
        """Nothing is held."""

"""The desk for the stages without training: who answers, and who is lost and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from flwr.app import ConfigRecord, Message
from hanse.errors import SecureAggregationError
from hanse.flower import config_of, error_label

from hanse_server.grid import HanseGrid
from hanse_server.history import SiteRound
from hanse_server.metrics import ServerMetrics
from hanse_server.status import Awaited
from hanse_server.terms import reason_of

T = TypeVar("T")

Read = Callable[[ConfigRecord, str], T]
"""Reads a site's reply; a SecureAggregationError that it raises loses the site."""


class StageDesk:
    """Passes the replies of one stage through, read, and remembers whom the stage lost."""

    def __init__(
        self,
        phase: str,
        names: Collection[str],
        grid: HanseGrid,
        metrics: ServerMetrics,
        *,
        deadline: float,
    ) -> None:
        self._phase = phase
        self._grid = grid
        self._metrics = metrics
        self._started = time.time()
        self._until = self._started + deadline
        self._awaited = set(names)
        self.lost: dict[str, SiteRound] = {}
        for site in names:
            metrics.awaited_since.labels(site).set(self._started)

    @property
    def awaited(self) -> tuple[Awaited, ...]:
        """Whose replies are still owed."""
        return tuple(
            Awaited(site=site, since=self._started, until=self._until)
            for site in sorted(self._awaited.copy())
        )

    def pass_on(self, replies: Iterable[Message], read: Read[T]) -> Iterator[tuple[str, T]]:
        """Yield site and answer as they arrive."""
        for reply in replies:
            site = self._grid.site_name(reply.metadata.src_node_id)
            try:
                answer = read(_config(reply), site)
            except SecureAggregationError as refused:
                label = error_label(reply.error) if reply.has_error() else refused.label
                self._lose(site, label, refused.message)
            else:
                self._answered(site)
                yield site, answer
        for site in sorted(self._awaited):
            self._lose(site, "missing", "no reply in time")

    def _lose(self, site: str, outcome: str, reason: str) -> None:
        self._answered(site)
        seconds = time.time() - self._started
        self.lost[site] = SiteRound(
            outcome=outcome, seconds=seconds, reason=reason_of(f"{self._phase}: {reason}", outcome)
        )
        self._metrics.replies.labels(site, outcome).inc()

    def _answered(self, site: str) -> None:
        self._awaited.discard(site)
        self._metrics.awaited_since.labels(site).set(0)


def _config(reply: Message) -> ConfigRecord:
    if reply.has_error():
        raise SecureAggregationError(reply.error.reason or error_label(reply.error))
    return config_of(reply.content)

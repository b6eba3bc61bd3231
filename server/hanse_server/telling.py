"""What the round loop tells while it runs: the status file, the metrics, the log."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hanse.errors import UpdateError
from hanse.job import Job

from hanse_server.grid import HanseGrid
from hanse_server.history import RoundRecord, read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.replies import ReplyDesk
from hanse_server.secagg.stage import StageDesk
from hanse_server.status import Refused, Status, StatusFile, clock

log = logging.getLogger("hanse.server")


LOOK_SECONDS = 1.0
FIRST_TOLD_SECONDS, LONGEST_UNTOLD_SECONDS = 30.0, 600.0
NAMED = 5


class Teller:
    """Says what a run does, whom it waits for, and whose replies were refused.

    A thread keeps the status true while nothing happens, and tells the log of whom nothing is
    heard: after half a minute, and then ever more seldom.
    """

    def __init__(self, job: Job, grid: HanseGrid, metrics: ServerMetrics, folder: Path) -> None:
        self._job = job
        self._grid = grid
        self._metrics = metrics
        self._folder = folder
        self._status = StatusFile(folder)
        self._refused: dict[str, Refused] = {}
        self._latest: Callable[[], Status] | None = None
        self._connected_told: tuple[str, ...] = ()
        self._nodes: Sequence[int] = ()
        self._names: tuple[str, ...] = ()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._look_on, name="teller", daemon=True)
        metrics.rounds_planned.set(job.rounds)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the run lasts."""
        with self._status:
            self._watch.start()
            try:
                yield
            finally:
                self._closed.set()
                self._watch.join()

    def show(
        self,
        phase: str,
        number: int,
        *,
        desk: ReplyDesk | StageDesk | None = None,
        waiting_for: str = "",
    ) -> None:
        """Show a phase of a round, and whose replies ``desk`` waits for."""
        # Put into words by who writes it down: a thousand replies a second are a few statuses.
        self._latest = partial(self._status_of, phase, number, desk, waiting_for)
        self._status.show(self._latest)

    def _status_of(
        self, phase: str, number: int, desk: ReplyDesk | StageDesk | None, waiting_for: str
    ) -> Status:
        awaited = desk.awaited if desk else ()
        if awaited:
            waiting_for = f"the reply of {_named([each.site for each in awaited])}"
        refused = self._refused.copy()
        self._connected_told = self._connected()
        return Status(
            phase=phase,
            round=number,
            rounds=self._job.rounds,
            connected=self._connected_told,
            awaited=awaited,
            waiting_for=waiting_for,
            refused=tuple(refused[site] for site in sorted(refused)),
        )

    def _connected(self) -> tuple[str, ...]:
        nodes = self._grid.get_node_ids()
        if nodes != self._nodes:
            self._names = tuple(sorted(map(self._grid.site_name, nodes)))
            self._nodes = nodes
        return self._names

    def _look_on(self) -> None:
        seen, since, due = None, 0.0, FIRST_TOLD_SECONDS
        while not self._closed.wait(LOOK_SECONDS):
            if self._latest is None:
                continue
            if self._connected() != self._connected_told:
                self._status.show(self._latest)
            latest, now = self._latest(), time.monotonic()
            what = latest.phase, latest.round, latest.awaited
            if what != seen:
                seen, since, due = what, now, FIRST_TOLD_SECONDS
            elif latest.awaited and now - since >= due:
                due = min(2 * due, due + LONGEST_UNTOLD_SECONDS)
                self._tell_stall(latest, now - since)

    def _tell_stall(self, status: Status, seconds: float) -> None:
        away = [each.site for each in status.awaited if each.site not in status.connected]
        log.warning(
            "round %d/%d %s: nothing for %.0f s; waiting for %s until %s%s",
            status.round,
            status.rounds,
            status.phase,
            seconds,
            status.waiting_for,
            clock(min(each.until for each in status.awaited)),
            f" (not connected: {_named(away)})" if away else "",
        )

    def tell(self, record: RoundRecord) -> None:
        """Tell of a round that ended."""
        self._metrics.rounds.labels(record.outcome).inc()
        for source, metrics in (("federated", record.federated), ("central", record.central)):
            for name, value in metrics.items():
                self._metrics.show_of_model(name, source, value)
        for exchange in (record.sites, record.judged):
            for name, site in exchange.items():
                if site.outcome == UpdateError.label:
                    self._refused[name] = Refused(name, record.round, site.reason)
        if not log.isEnabledFor(logging.INFO):
            return
        outcomes = Counter(site.outcome for site in record.sites.values())
        told = " ".join(f"{outcome}={count}" for outcome, count in sorted(outcomes.items()))
        judged = record.central or record.federated
        shown = " ".join(f"{name}={value:.4f}" for name, value in judged.items())
        log.info(
            "round %d/%d %s in %.2f s: %s %s",
            record.round,
            self._job.rounds,
            record.outcome,
            record.seconds,
            told,
            shown,
        )

    def why_missed(self, rounds: int) -> str:
        """Why so many rounds in a row missed the quorum, by the reasons of the last."""
        last = read_history(self._folder)[-1]
        reasons = Counter(site["reason"] or site["outcome"] for site in last["sites"].values())
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
        return (
            f"{rounds} rounds in a row had fewer than {self._job.strategy.quorum} results "
            f"(the last: {told or 'no site was asked'})"
        )


def _named(sites: Sequence[str]) -> str:
    """Their names, of many the first few."""
    more = len(sites) - NAMED
    return ", ".join(sites[:NAMED]) + (f" and {more} more" if more > 0 else "")

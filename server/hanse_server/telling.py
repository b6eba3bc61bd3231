"""What the round loop tells while it runs: the status file, the metrics, the log."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from hanse.errors import UpdateError
from hanse.job import Job

from hanse_server.grid import HanseGrid
from hanse_server.metrics import ServerMetrics
from hanse_server.replies import ReplyDesk
from hanse_server.secagg.stage import StageDesk
from hanse_server.status import Refused, Status, StatusFile
from hanse_server.workspace import RoundRecord, read_history

log = logging.getLogger("hanse.server")


class Teller:
    """Says what a run does, whom it waits for, and whose replies were refused."""

    def __init__(self, job: Job, grid: HanseGrid, metrics: ServerMetrics, folder: Path) -> None:
        self._job = job
        self._grid = grid
        self._metrics = metrics
        self._folder = folder
        self._status = StatusFile(folder)
        self._refused: dict[str, Refused] = {}
        metrics.rounds_planned.set(job.rounds)

    def __enter__(self) -> Self:
        self._status.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.__exit__(kind, error, trace)

    def show(
        self,
        phase: str,
        number: int,
        *,
        desk: ReplyDesk | StageDesk | None = None,
        waiting_for: str = "",
    ) -> None:
        """Show a phase of a round, and whose replies ``desk`` waits for."""
        names = sorted(self._grid.site_name(node) for node in self._grid.get_node_ids())
        awaited = desk.awaited if desk else ()
        if awaited:
            waiting_for = f"replies of {len(awaited)} sites"
        status = Status(
            phase=phase,
            round=number,
            rounds=self._job.rounds,
            connected=tuple(names),
            awaited=awaited,
            waiting_for=waiting_for,
            refused=tuple(self._refused[site] for site in sorted(self._refused)),
        )
        self._status.show(status)

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

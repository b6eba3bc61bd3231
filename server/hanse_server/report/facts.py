"""What a workspace tells of its run, read once and typed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hanse.errors import WorkspaceError
from hanse.job import Job
from hanse.parsing import parse_json
from pydantic import ValidationError

from hanse_server.costs import SiteCost
from hanse_server.history import RoundRecord, read_history
from hanse_server.report.sites import SiteFacts, site_facts
from hanse_server.spending import Spending
from hanse_server.status import Status, read_status
from hanse_server.workspace import read_run

COMPLETED = "completed"  # a round's outcome when it reached the quorum
UNDER_WAY = ("waiting", "training", "evaluating", "checkpointing")  # phases of a server at work


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One line of a comparison of models on the same held-out records.

    Attributes:
        epsilon: the highest at a site; None if it was trained without privacy.
    """

    model: str
    accuracy: float
    auc: float | None
    loss: float | None
    epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The federated model beside others, the best first."""

    contenders: tuple[Contender, ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """A model that the run left behind, by its statement.

    Attributes:
        name: ``last`` or ``best``.
        round: the round after which it was kept.
        hanse: the version that wrote it.
    """

    name: str
    round: int
    hanse: str


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run, as far as it is.

    Attributes:
        settings: the job as ``run.json`` has it, defaults written out.
        status: what the server last wrote of itself, None if it never did.
        comparison: where somebody measured one.
    """

    run_id: int
    started_at: float
    hanse: str
    job_digest: str
    job: Job
    settings: dict[str, Any]
    rounds: tuple[RoundRecord, ...]
    models: tuple[KeptModel, ...]
    status: Status | None
    comparison: Comparison | None

    @cached_property
    def sites(self) -> tuple[SiteFacts, ...]:
        """Every site that was ever asked, by name."""
        return site_facts(self.rounds)

    @cached_property
    def costs(self) -> dict[str, SiteCost]:
        """What the run cost each site's records, as far as is known, by name."""
        return Spending(self.job, self.rounds).costs(tight=True)

    @property
    def last_round(self) -> int:
        """The last round that ended, 0 if none did."""
        return self.rounds[-1].round if self.rounds else 0

    @cached_property
    def completed(self) -> int:
        """Rounds that reached the quorum."""
        return sum(record.outcome == COMPLETED for record in self.rounds)

    @cached_property
    def missed_last(self) -> int:
        """Rounds in a row, up to the last, that missed the quorum."""
        count = 0
        for record in reversed(self.rounds):
            if record.outcome == COMPLETED:
                break
            count += 1
        return count

    @property
    def ended_at(self) -> float:
        """When the last round ended; the run's start if none did."""
        if not self.rounds:
            return self.started_at
        return self.rounds[-1].started_at + self.rounds[-1].seconds

    @property
    def seconds(self) -> float:
        """Time spent in rounds."""
        return sum(record.seconds for record in self.rounds)

    @property
    def median_seconds(self) -> float:
        """Of one round."""
        return statistics.median(record.seconds for record in self.rounds)

    @property
    def bytes_up(self) -> int:
        """Bytes that the server received from sites."""
        return sum(record.bytes_up for record in self.rounds)

    @property
    def bytes_down(self) -> int:
        """Bytes that the server sent to sites."""
        return sum(record.bytes_down for record in self.rounds)

    @cached_property
    def last_judged(self) -> RoundRecord | None:
        """The last round whose model was evaluated."""
        judged = (record for record in reversed(self.rounds) if record.central or record.federated)
        return next(judged, None)


def read_facts(folder: Path) -> RunFacts:
    """Read a workspace.

    Raises:
        WorkspaceError: if it is none, or something in it is damaged.
    """
    run = read_run(folder)
    try:
        return RunFacts(
            run_id=int(run["run_id"]),
            started_at=float(run["started_at"]),
            hanse=str(run["hanse"]),
            job_digest=str(run["job_digest"]),
            job=Job.model_validate(run["job"]),
            settings=run["job"],
            rounds=tuple(RoundRecord.from_line(line) for line in read_history(folder)),
            models=tuple(_models(folder / "models")),
            status=read_status(folder) if (folder / "status.json").exists() else None,
            comparison=_comparison(folder / "comparison.json"),
        )
    except (KeyError, TypeError, ValueError, ValidationError) as unfit:
        raise WorkspaceError(
            f"{folder} cannot be read: {type(unfit).__name__}: {unfit}",
            remedy=f"Write the report with the version that ran it: hanse {run.get('hanse')}.",
        ) from unfit


def _models(folder: Path) -> Iterator[KeptModel]:
    for name in ("last", "best"):
        path = folder / f"{name}.json"
        if path.exists():
            statement = parse_json(path.read_bytes())
            yield KeptModel(name=name, round=statement["round"], hanse=statement["hanse"])


def _comparison(path: Path) -> Comparison | None:
    if not path.exists():
        return None
    data = parse_json(path.read_bytes())
    contenders = [
        Contender(
            model=row["model"],
            accuracy=row["accuracy"],
            auc=row.get("auc"),
            loss=row.get("loss"),
            epsilon=row.get("epsilon"),
        )
        for row in data["rows"]
    ]
    contenders.sort(key=lambda each: each.accuracy, reverse=True)
    return Comparison(contenders=tuple(contenders), note=data.get("note", ""))

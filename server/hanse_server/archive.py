"""What a run keeps of its rounds: history, checkpoints, the best and the last model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ArrayRecord
from hanse.job import Job
from torch import Tensor

from hanse_server import checkpoint
from hanse_server.checkpoint import Checkpoint, Progress
from hanse_server.durable import kept_in
from hanse_server.history import RoundRecord
from hanse_server.spending import Spending
from hanse_server.statement import model_statement
from hanse_server.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Unkept:
    """What is to be written of the rounds since the last checkpoint.

    Attributes:
        last: the model of the last round that made one, and the round; None without any.
        best: the best model among them, with its statement; None for no better one than before.
    """

    checkpoint: Checkpoint
    last: tuple[ArrayRecord, RoundRecord] | None
    best: tuple[ArrayRecord, dict[str, Any]] | None


class Archive:
    """The rounds of a job in its workspace; :meth:`resume` comes first.

    Where the workspace has a pace, a simulation's, models and checkpoints are written that often
    and at the end, when :meth:`flush` must be called.

    Attributes:
        answered: instructions whose replies went into the last durable round, as it was resumed.
    """

    def __init__(self, job: Job, workspace: Workspace) -> None:
        self._job = job
        self._workspace = workspace
        self._spending = Spending(job)
        self.answered: frozenset[str] = frozenset()
        self._unkept: Unkept | None = None
        self._kept_at = time.monotonic()

    def resume(self) -> Checkpoint | None:
        """The last checkpoint, None without any; rounds after it are struck from the history."""
        last = checkpoint.load_last(self._workspace.checkpoints)
        for line in self._workspace.truncate(0 if last is None else last.progress.round):
            record = RoundRecord.from_line(line)
            self._spending.fold(record)
            sites = (*record.sites.values(), *record.judged.values())
            self.answered = frozenset(site.reply for site in sites if site.reply)
        return last

    def keep(
        self,
        record: RoundRecord,
        arrays: ArrayRecord,
        released: ArrayRecord,
        progress: Progress,
        strategy: Mapping[str, Tensor],
    ) -> Progress:
        """Make a round durable.

        Args:
            arrays: the model that the next round trains on.
            released: the one that is judged and kept.
            progress: of the run, this round included.
            strategy: its state.

        Returns:
            The progress with the best model so far.

        Raises:
            WorkspaceError: if it cannot be written; the run goes on from the round before it.
        """
        with kept_in(self._workspace.folder):
            # The trail before all else: no model without a word of what it was made from.
            self._workspace.trail.kept(record, arrays, released)
            self._spending.fold(record)
            before, self._unkept = self._unkept, None
            last, best = (None, None) if before is None else (before.last, before.best)
            value = self._selected(record)
            if value is not None and (progress.best is None or value > progress.best):
                best = released, self._statement(record)
                progress = replace(progress, best=value, best_round=record.round)
            ends = record.round == self._job.rounds
            if ends or record.outcome == "completed":
                last = released, record
            made = Checkpoint(progress=progress, arrays=arrays, strategy=strategy)
            unkept = Unkept(checkpoint=made, last=last, best=best)
            if ends or time.monotonic() - self._kept_at >= self._workspace.pace:
                self._keep(unkept, record)
            else:
                self._workspace.append(record)
                self._unkept = unkept
        return progress

    def flush(self) -> None:
        """Make durable what was put off; nothing where every round is kept at once.

        Raises:
            WorkspaceError: if it cannot be written.
        """
        if self._unkept is not None:
            unkept, self._unkept = self._unkept, None
            with kept_in(self._workspace.folder):
                self._keep(unkept)

    def _keep(self, unkept: Unkept, record: RoundRecord | None = None) -> None:
        """Write models, the round's line, and the checkpoint.

        Args:
            record: of the round; None if it is in the history already.
        """
        self._keep_models(unkept)
        # History first: a round that is in it and in no checkpoint is run again and struck.
        if record is not None:
            self._workspace.append(record)
        checkpoint.save(self._workspace.checkpoints, unkept.checkpoint)
        self._kept_at = time.monotonic()

    def _keep_models(self, unkept: Unkept) -> None:
        folder = self._workspace.models
        if unkept.last is not None:
            released, of = unkept.last
            checkpoint.save_model(folder / "last.safetensors", released, self._statement(of))
        if unkept.best is not None:
            checkpoint.save_model(folder / "best.safetensors", *unkept.best)

    def _statement(self, record: RoundRecord) -> dict[str, Any]:
        costs = self._spending.costs(tight=record.round == self._job.rounds)
        return model_statement(self._job, record, costs)

    def _selected(self, record: RoundRecord) -> float | None:
        """The value that decides which model is best, higher is better; None if not measured."""
        select = self._job.evaluation.select
        metrics = record.central or record.federated
        value = metrics.get(select.lstrip("-"))
        return None if value is None else -value if select.startswith("-") else value

"""What a run keeps of its rounds: history, checkpoints, the best and the last model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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


class Archive:
    """The rounds of a job in its workspace; :meth:`resume` comes first.

    Attributes:
        answered: instructions whose replies went into the last durable round, as it was resumed.
    """

    def __init__(self, job: Job, workspace: Workspace) -> None:
        self._job = job
        self._workspace = workspace
        self._spending = Spending(job)
        self.answered: frozenset[str] = frozenset()

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
            progress = self._keep_models(record, released, progress)
            # History first: a round that is in it and in no checkpoint is run again and struck.
            self._workspace.append(record)
            checkpoint.save(
                self._workspace.checkpoints,
                Checkpoint(progress=progress, arrays=arrays, strategy=strategy),
            )
        return progress

    def _keep_models(
        self, record: RoundRecord, released: ArrayRecord, progress: Progress
    ) -> Progress:
        folder = self._workspace.models
        self._spending.fold(record)
        costs = self._spending.costs(tight=record.round == self._job.rounds)
        statement = model_statement(self._job, record, costs)
        if record.round == self._job.rounds or record.outcome == "completed":
            checkpoint.save_model(folder / "last.safetensors", released, statement)
        value = self._selected(record)
        if value is None or (progress.best is not None and value <= progress.best):
            return progress
        checkpoint.save_model(folder / "best.safetensors", released, statement)
        return replace(progress, best=value, best_round=record.round)

    def _selected(self, record: RoundRecord) -> float | None:
        """The value that decides which model is best, higher is better; None if not measured."""
        select = self._job.evaluation.select
        metrics = record.central or record.federated
        value = metrics.get(select.lstrip("-"))
        return None if value is None else -value if select.startswith("-") else value

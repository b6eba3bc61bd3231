"""The round loop: from a global model to the next, until the job's rounds are done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from hanse.encodings import asked_for
from hanse.errors import QuorumError, StrategyError
from hanse.flower import JOB, ROUND, to_record
from hanse.job import Job
from hanse.task import load_task

from hanse_server.archive import Archive
from hanse_server.checkpoint import Progress
from hanse_server.decoding import Travelling
from hanse_server.grid import HanseGrid
from hanse_server.history import MISSING, RoundRecord, SiteRound
from hanse_server.memory import settling
from hanse_server.metrics import ServerMetrics
from hanse_server.model import CentralJudge, initial_weights
from hanse_server.replies import ReplyDesk
from hanse_server.secagg import SecureTraining
from hanse_server.spending import FIGURES
from hanse_server.strategies import Resumable, make_strategy, released_model
from hanse_server.telling import Teller
from hanse_server.updates import specs_of
from hanse_server.workspace import Workspace

log = logging.getLogger("hanse.server")

OnRound = Callable[[RoundRecord], None]

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Trained:
    """What a round's training came to; ``arrays`` is None when the quorum was missed."""

    arrays: ArrayRecord | None
    metrics: dict[str, float]
    sites: dict[str, SiteRound]


class RoundLoop:
    """Runs a job's rounds over a grid, from the workspace's last checkpoint on.

    Args:
        on_round: told of each round once it is durable.
    """

    def __init__(
        self,
        job: Job,
        grid: HanseGrid,
        workspace: Workspace,
        metrics: ServerMetrics,
        on_round: OnRound,
    ) -> None:
        self._on_round = on_round
        self._job = job
        self._grid = grid
        self._workspace = workspace
        self._metrics = metrics
        self._teller = Teller(job, grid, metrics, workspace.folder)
        self._task = load_task(job.task.name, job.task.options)
        self._strategy = make_strategy(job)
        self._secure = (
            SecureTraining(job, grid, metrics, workspace.folder, self._teller.show)
            if job.secure_aggregation.enabled
            else None
        )
        self._judge = CentralJudge(self._task, job)
        self._travelling = Travelling.of(job.encoding, self._task.model)
        self._archive = Archive(job, workspace)
        self._folds_late = job.strategy.folds_late
        self._taken_up = False
        self._owing: frozenset[str] = frozenset()  # asked by an earlier server of this run
        self._arrays = ArrayRecord()  # the model; a frame's own would hold it for a round longer

    def run(self) -> None:
        """All rounds that are left.

        Raises:
            QuorumError: if ``strategy.patience`` rounds in a row found too few sites.
        """
        with self._teller.running(), settling() as settle:
            progress = self._resume()
            settle()
            try:
                self._rounds(progress, settle)
            finally:
                self._archive.flush()
            self._teller.show("done", self._job.rounds)

    def _rounds(self, progress: Progress, settle: Callable[[], None]) -> None:
        first = progress.round + 1
        while progress.round < self._job.rounds:
            number = progress.round + 1
            self._metrics.round.set(number)
            with self._metrics.round_seconds.time():
                progress = self._round(number, progress)
            if number == first:
                settle()
            if progress.missed >= self._job.strategy.patience:
                self._teller.show("failed", number)
                raise QuorumError(self._teller.why_missed(progress.missed))

    def _round(self, number: int, progress: Progress) -> Progress:
        started = time.time()
        received, sent = self._grid.traffic()
        # 1. enough sites
        self._await_sites(number)
        # 2. train
        trained = self._train(number, self._arrays)
        met = trained.arrays is not None
        if trained.arrays is not None:
            self._arrays = trained.arrays
        released = released_model(self._strategy, self._arrays)
        # 3. judge
        due = met and (number % self._job.evaluation.every == 0 or number == self._job.rounds)
        asked = due and self._job.evaluation.federated
        federated, judged = self._evaluate(number, released) if asked else ({}, {})
        central = self._judge(released) if due else {}
        # 4. keep
        received_now, sent_now = self._grid.traffic()
        record = RoundRecord(
            round=number,
            outcome="completed" if met else "missed_quorum",
            started_at=started,
            seconds=time.time() - started,
            sites=trained.sites,
            train=trained.metrics,
            federated=federated,
            central=central,
            bytes_up=received_now - received,
            bytes_down=sent_now - sent,
            judged=judged,
        )
        progress = replace(progress, round=number, missed=0 if met else progress.missed + 1)
        progress = self._keep(record, released, progress)
        self._teller.tell(record)
        self._on_round(record)
        return progress

    # --- the steps of a round ---------------------------------------------------------------

    def _await_sites(self, number: int) -> None:
        with self._metrics.phases.during("waiting"):
            started = told = time.monotonic()
            while waiting_for := self._waits_for(time.monotonic() - started):
                self._teller.show("waiting", number, waiting_for=waiting_for)
                if time.monotonic() - told > self._job.limits.connections_wait:
                    told = time.monotonic()
                    log.warning("round %d: %s for %.0f s", number, waiting_for, told - started)
                time.sleep(POLL_SECONDS)
        self._owing = frozenset()
        if self._folds_late and not self._taken_up:
            self._taken_up = True
            self._grid.take_up(MessageType.TRAIN, str(number))

    def _waits_for(self, waited: float) -> str:
        """What must come about before the round can start, in words; empty if nothing must.

        Args:
            waited: seconds so far.
        """
        nodes, needed = self._grid.get_node_ids(), self._job.strategy.needs_connected
        if len(nodes) < needed:
            return f"{len(nodes)} of {needed} sites connected"
        away = self._owing and self._owing - {self._grid.site_name(node) for node in nodes}
        if away and waited < self._job.strategy.deadline:
            return f"{len(away)} sites away that were asked before the server stopped"
        return ""

    def _train(self, number: int, arrays: ArrayRecord) -> Trained:
        config = self._config(number)
        config.update(asked_for(self._job.encoding))
        messages = list(self._strategy.configure_train(number, arrays, config, self._grid))
        if self._secure is not None:
            outcome = self._secure.run(number, messages, arrays)
            summed = [] if outcome.reply is None else [outcome.reply]
            aggregate, metrics = self._strategy.aggregate_train(number, summed)
            return Trained(aggregate, _plain(metrics), outcome.sites)
        given_up = self._give_up(number) if self._folds_late else {}
        with self._exchange("training", number, messages, arrays) as (desk, replies):
            aggregate, metrics = self._strategy.aggregate_train(number, replies)
        met = desk.results >= self._job.strategy.quorum
        if met and aggregate is None:
            raise StrategyError(
                f"{self._job.strategy.name} made no model of {desk.results} results",
                remedy="Its own line in the log says why; correct [strategy] in job.toml.",
            )
        return Trained(aggregate if met else None, _plain(metrics), given_up | desk.sites)

    def _give_up(self, number: int) -> dict[str, SiteRound]:
        """Wait no longer for sites that are too many rounds behind, and say so of each."""
        most = self._job.strategy.max_staleness
        behind = {
            node: number - int(group)
            for node, group in self._grid.working().items()
            if number - int(group) > most
        }
        since = {each.site: each.since for each in self._grid.awaited()}
        self._grid.give_up(behind.keys())
        given_up = {}
        for node, rounds in behind.items():
            name = self._grid.site_name(node)
            given_up[name] = SiteRound(
                outcome=MISSING,
                seconds=time.time() - since[name],
                reason=f"{rounds} rounds behind, and strategy.max_staleness = {most}",
                staleness=rounds,
            )
        return given_up

    def _evaluate(
        self, number: int, arrays: ArrayRecord
    ) -> tuple[dict[str, float], dict[str, SiteRound]]:
        config = self._config(number)
        messages = self._strategy.configure_evaluate(number, arrays, config, self._grid)
        with self._exchange("evaluating", number, list(messages), None) as (desk, replies):
            means = _plain(self._strategy.aggregate_evaluate(number, replies))
        # What sites say of their privacy is each site's own, and no measure of the model.
        metrics = {name: value for name, value in means.items() if name not in FIGURES}
        return metrics, desk.sites

    @contextmanager
    def _exchange(
        self, phase: str, number: int, messages: list[Message], arrays: ArrayRecord | None
    ) -> Iterator[tuple[ReplyDesk, Iterator[Message]]]:
        """Send ``messages``; what comes back is checked and, while it is awaited, shown."""
        strategy, trains = self._job.strategy, arrays is not None
        deadline = strategy.deadline
        folds = trains and self._folds_late
        desk = ReplyDesk(
            messages,
            self._grid,
            self._metrics,
            specs=None if arrays is None else specs_of(arrays),
            checks=self._job.checks,
            deadline=deadline,
            number=number,
            earlier=self._grid.awaited() if folds else None,
            travelling=self._travelling,
        )
        goal = strategy.goal if trains else None

        def watched(replies: Iterable[Message]) -> Iterator[Message]:
            for reply in desk.pass_on(replies, goal=goal):
                self._teller.show(phase, number, desk=desk)
                yield reply

        with self._metrics.phases.during(phase):
            self._metrics.round_deadline.set(time.time() + deadline)
            self._teller.show(phase, number, desk=desk)
            send = self._grid.collect if folds else self._grid.send_and_receive
            with closing(send(messages, timeout=deadline)) as replies:
                yield desk, watched(replies)
            self._metrics.round_deadline.set(0)

    def _keep(self, record: RoundRecord, released: ArrayRecord, progress: Progress) -> Progress:
        """Make the round durable; only then is what the sites sent settled."""
        with self._metrics.phases.during("checkpointing"):
            state = self._strategy.state() if isinstance(self._strategy, Resumable) else {}
            progress = self._archive.keep(record, self._arrays, released, progress, state)
            self._grid.settle()
        return progress

    # --- before, between and after ----------------------------------------------------------

    def _resume(self) -> Progress:
        last = self._archive.resume()
        self._grid.settle_kept(self._archive.answered)
        self._owing = self._grid.owing(str(1 if last is None else last.progress.round + 1))
        if last is None:
            self._arrays = to_record(initial_weights(self._task, self._job), adopt=True)
            return Progress()
        self._arrays = last.arrays
        if isinstance(self._strategy, Resumable):
            self._strategy.restore(last.strategy)
        log.info("going on after round %d of %d", last.progress.round, self._job.rounds)
        # A run that was stopped for want of sites gets its patience back.
        return replace(last.progress, missed=0)

    def _config(self, number: int) -> ConfigRecord:
        return ConfigRecord({JOB: self._job.instruction, ROUND: number})


def _plain(metrics: MetricRecord | None) -> dict[str, float]:
    found = {} if metrics is None else metrics
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}

"""One session of a secure round: its stages, from the sites' keys to one reply for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from hanse.errors import SecureAggregationError
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    METRICS,
    ROUND,
    SERVER_NODE_ID,
    WEIGHT,
    Envelope,
    only_arrays,
    open_envelope,
    to_record,
)
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.secagg.cohort import Announcement, Cohort, SessionId
from hanse.secagg.messages import (
    KEYS,
    SESSION,
    SHARES,
    SITES,
    SURVIVORS,
    UNMASK,
    pack_cohort,
    pack_named,
    read_announcement,
    read_bytes,
    read_named,
)

from hanse_server.grid import HanseGrid
from hanse_server.history import SiteRound
from hanse_server.metrics import ServerMetrics
from hanse_server.replies import ReplyDesk
from hanse_server.secagg.stage import Read, StageDesk, T
from hanse_server.secagg.total import MaskedSum
from hanse_server.secagg.transcript import Transcript
from hanse_server.strategies.average import RunningMetrics
from hanse_server.updates import TensorSpec, masked_specs

log = logging.getLogger("hanse.server")

PHASES = {
    KEYS: "agreeing_on_masks",
    SHARES: "sharing_masks",
    MessageType.TRAIN: "training",
    SURVIVORS: "agreeing_on_survivors",
    UNMASK: "unmasking",
}
"""What status and metrics call a stage."""


class Show(Protocol):
    """Shows whom the server waits for."""

    def __call__(self, phase: str, number: int, *, desk: StageDesk | ReplyDesk) -> None:
        """Show a phase of a round."""


@dataclass(frozen=True, kw_only=True)
class SecureOutcome:
    """What a secure round's training came to.

    Attributes:
        reply: one reply that stands for all survivors: the weighted mean of their updates under
            the sum of their weights; None if the round is missed.
        sites: what each site did.
    """

    reply: Message | None
    sites: dict[str, SiteRound]


class SessionLostError(Exception):
    """A session of before a restart cannot go on: a site that was in it does not answer again."""


class SecureRound:
    """One session: its stages in their order, each with those who answered the one before."""

    def __init__(
        self,
        job: Job,
        grid: HanseGrid,
        metrics: ServerMetrics,
        show: Show,
        transcript: Transcript,
        number: int,
        messages: Sequence[Message],
    ) -> None:
        self._job = job
        self._grid = grid
        self._metrics = metrics
        self._show = show
        self._transcript = transcript
        self._number = number
        self._instruction = messages[0].content if messages else RecordDict()
        self._chosen = [grid.site_name(message.metadata.dst_node_id) for message in messages]
        self._sites: dict[str, SiteRound] = {}

    def run(self, specs: dict[str, TensorSpec]) -> SecureOutcome:
        """All stages; a round in which too few sites are left ends without a reply.

        Raises:
            SessionLostError: if the session is one of before a restart and cannot go on.
        """
        try:
            reply = self._sum(specs)
        except SecureAggregationError as missed:
            log.warning("round %d: %s", self._number, missed.message)
            return SecureOutcome(reply=None, sites=self._missed(missed))
        return SecureOutcome(reply=reply, sites=self._sites)

    def _sum(self, specs: dict[str, TensorSpec]) -> Message:
        quorum = self._job.strategy.quorum
        # 1. the cohort
        members = self._stage(KEYS, self._chosen, self._common({}), self._announced)
        self._check_enough("announced masking keys", len(members), quorum)
        session = SessionId(
            run_id=self._grid.run_id,
            server_round=self._number,
            token=self._transcript.token,
            job=self._job.digest,
        )
        cohort = Cohort(session, members.values(), self._job.secure_aggregation)
        enough = max(cohort.least, quorum)
        # 2. the sharers
        everyone = self._common(pack_cohort(cohort.members.values()))
        sealed = self._stage(SHARES, members, everyone, lambda c, _: read_named(c, "shares"))
        self._check_enough("shared their secrets", len(sealed), enough)
        # 3. the survivors
        total, metrics = MaskedSum(specs), RunningMetrics()
        survivors = self._train(specs, sorted(sealed), total, metrics)
        self._check_enough("sent an update", len(survivors), enough)
        # 4. their consent
        listed = self._common({SITES: survivors})
        signatures = self._stage(SURVIVORS, survivors, listed, _signature)
        self._check_enough("signed the list of survivors", len(signatures), cohort.least)

        # 5. unmasking
        def request(name: str) -> RecordDict:
            shares = {peer: each[name] for peer, each in sealed.items() if name in each}
            told = pack_named("signatures", signatures) | pack_named("shares", shares)
            return self._content({SITES: survivors} | told)

        revealed = self._stage(UNMASK, signatures, request, lambda c, _: read_named(c, "revealed"))
        with self._metrics.phases.during(PHASES[UNMASK]):
            total.unmask(cohort, sorted(sealed), survivors, revealed)
            mean = total.mean(cohort, survivors)
        weight = sum(cohort.members[name].weight for name in survivors)
        return self._reply(to_record(mean), metrics, weight)

    def _announced(self, config: ConfigRecord, name: str) -> Announcement:
        """What a site announces, if the job lets it weigh so much.

        Raises:
            SecureAggregationError: if it does not, or it is malformed.
        """
        member, most = read_announcement(config, name), self._job.checks.max_weight
        if most is not None and member.weight > most:
            raise SecureAggregationError(
                f"{WEIGHT} = {member.weight:g} is above the largest, {most:g} (checks.max_weight)"
            )
        return member

    # --- stages -----------------------------------------------------------------------------------

    def _stage(
        self,
        stage: str,
        names: Collection[str],
        content: Callable[[str], RecordDict],
        read: Read[T],
    ) -> dict[str, T]:
        """Ask sites for a stage without training; their answers by name, sorted."""
        decided = self._transcript.decided(stage)
        asked = sorted(names) if decided is None else decided
        deadline = self._job.secure_aggregation.stage_deadline
        desk = StageDesk(PHASES[stage], asked, self._grid, self._metrics, deadline=deadline)
        messages = [self._message(stage, name, content(name)) for name in asked]
        answers: dict[str, T] = {}
        with self._metrics.phases.during(PHASES[stage]):
            self._show(PHASES[stage], self._number, desk=desk)
            replies = self._grid.send_and_receive(messages, timeout=deadline)
            for name, answer in desk.pass_on(replies, read):
                self._show(PHASES[stage], self._number, desk=desk)
                answers[name] = answer
        if stage in (KEYS, SHARES):  # whom later stages lose is in the sum
            self._lose(desk)
        self._decide(stage, answers)
        return {name: answers[name] for name in sorted(answers)}

    def _train(
        self,
        specs: dict[str, TensorSpec],
        sharers: list[str],
        total: MaskedSum,
        metrics: RunningMetrics,
    ) -> list[str]:
        """Have the sharers train; fold what they send; the survivors, sorted."""
        arrays = only_arrays(self._instruction)
        config = ConfigRecord(dict(self._instruction.config_records[CONFIG]))
        config.update({SESSION: self._transcript.token, SITES: sharers})
        content = RecordDict({ARRAYS: arrays, CONFIG: config})  # one for all: it is encoded once
        decided = self._transcript.decided(MessageType.TRAIN)
        asked = sharers if decided is None else decided
        messages = [self._message(MessageType.TRAIN, name, content) for name in asked]
        deadline = self._job.strategy.deadline
        desk = ReplyDesk(
            messages,
            self._grid,
            self._metrics,
            specs=masked_specs(specs),
            checks=self._job.checks,
            deadline=deadline,
            number=self._number,
        )
        phase, survivors = PHASES[MessageType.TRAIN], []
        with self._metrics.phases.during(phase):
            self._show(phase, self._number, desk=desk)
            for reply in desk.pass_on(self._grid.send_and_receive(messages, timeout=deadline)):
                self._show(phase, self._number, desk=desk)
                if reply.has_content():
                    survivors.append(self._grid.site_name(reply.metadata.src_node_id))
                    metrics.fold(reply.content)
                    total.fold(only_arrays(reply.content))
        self._sites |= desk.sites
        self._decide(MessageType.TRAIN, survivors)
        return sorted(survivors)

    def _decide(self, stage: str, names: Collection[str]) -> None:
        decided = self._transcript.decided(stage)
        if decided is not None and set(decided) != set(names):
            lost = ", ".join(sorted(set(decided) - set(names))[:10])
            raise SessionLostError(f"{PHASES[stage]}: no second answer from {lost}")
        if stage != UNMASK:
            self._transcript.decide(stage, names)

    # --- messages ---------------------------------------------------------------------------------

    def _common(self, values: dict[str, object]) -> Callable[[str], RecordDict]:
        content = self._content(values)  # one for all: it is encoded once
        return lambda _: content

    def _content(self, values: dict[str, object]) -> RecordDict:
        told = {JOB: self._job.instruction, ROUND: self._number, SESSION: self._transcript.token}
        return RecordDict({CONFIG: ConfigRecord(told | values)})  # type: ignore[arg-type]

    def _message(self, stage: str, name: str, content: RecordDict) -> Message:
        # A session of before a restart may be with sites that are away at this moment.
        return Message(content, node_id_of(name), stage, group_id=str(self._number))

    def _reply(self, mean: ArrayRecord, metrics: RunningMetrics, weight: float) -> Message:
        told = metrics.mean() or MetricRecord()
        told[WEIGHT] = weight
        envelope = Envelope(
            message_id=self._transcript.token,
            run_id=self._grid.run_id,
            src_node_id=SERVER_NODE_ID,
            dst_node_id=SERVER_NODE_ID,
            message_type=MessageType.TRAIN,
            group_id=str(self._number),
            reply_to=self._transcript.token,
        )
        return open_envelope(envelope, RecordDict({ARRAYS: mean, METRICS: told}))

    # --- who is lost ------------------------------------------------------------------------------

    def _check_enough(self, did: str, sites: int, needed: int) -> None:
        if sites < needed:
            raise SecureAggregationError(f"{sites} sites {did}, {needed} are needed")

    def _lose(self, desk: StageDesk) -> None:
        self._sites |= desk.lost

    def _missed(self, why: SecureAggregationError) -> dict[str, SiteRound]:
        """What each site did, where no sum came of it."""
        nothing = SiteRound(outcome="result", seconds=0.0)
        sites = dict.fromkeys(self._chosen, nothing) | self._sites
        return {
            name: replace(site, outcome=why.label, reason=why.message)
            if site.outcome == "result"
            else site
            for name, site in sites.items()
        }


def _signature(config: ConfigRecord, name: str) -> bytes:
    return read_bytes(config, "signature")

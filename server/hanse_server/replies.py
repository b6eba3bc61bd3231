"""The desk where replies are looked at before a strategy sees them, and accounts are kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Error as FlowerError
from flwr.app import Message
from hanse.aggregation import Checks
from hanse.errors import UpdateError
from hanse.flower import ENCODING_ERROR, WEIGHT, Envelope, error_label, open_envelope

from hanse_server.decoding import Travelled, Travelling, decoded
from hanse_server.grid import HanseGrid
from hanse_server.history import MISSING, WORKING, SiteRound
from hanse_server.metrics import ServerMetrics
from hanse_server.status import Awaited
from hanse_server.terms import checked_metrics, checked_terms, reason_of
from hanse_server.updates import TensorSpec, checked_update


class ReplyDesk:
    """Passes replies of one exchange through, checked, and remembers what each site did.

    A reply that does not fit the model, or that the job's checks refuse, goes on as an error, so
    that no strategy folds it.

    Args:
        specs: the model's, for training replies; None for evaluation, which sends no arrays.
        deadline: seconds from now.
        number: of the round.
        earlier: who was asked in an earlier round and may answer in this one; None where the
            reply to an earlier round counts no more. Else who has not answered by the end is
            told to be at work still.
        travelling: how an update may be encoded.

    Attributes:
        sites: what each has done so far.
        results: how many sites answered with a result so far.
    """

    def __init__(
        self,
        messages: Iterable[Message],
        grid: HanseGrid,
        metrics: ServerMetrics,
        *,
        specs: Mapping[str, TensorSpec] | None,
        checks: Checks,
        deadline: float,
        number: int = 0,
        earlier: Iterable[Awaited] | None = None,
        travelling: Travelling | None = None,
    ) -> None:
        self._grid = grid
        self._metrics = metrics
        self._specs = specs
        self._checks = checks
        self._travelling = travelling or Travelling()
        self._number = number
        self._started = time.time()
        self._until = self._started + deadline
        self._unanswered = MISSING if earlier is None else WORKING
        self._since = {each.site: each.since for each in earlier or ()}
        for message in messages:
            self._since[grid.site_name(message.metadata.dst_node_id)] = self._started
        self.sites: dict[str, SiteRound] = {}
        self.results = 0
        for site, since in self._since.items():
            metrics.awaited_since.labels(site).set(since)

    @property
    def awaited(self) -> tuple[Awaited, ...]:
        """Whose replies are still owed."""
        return tuple(
            Awaited(site=site, since=since, until=self._until)
            for site, since in sorted(self._since.copy().items())
        )

    def pass_on(self, replies: Iterable[Message], *, goal: int | None = None) -> Iterator[Message]:
        """Yield each reply as it arrives, checked and accounted for.

        Args:
            goal: results with which the exchange ends, whoever else was asked.
        """
        for reply in replies:
            site = self._grid.site_name(reply.metadata.src_node_id)
            checked, record = self._look_at(site, reply)
            self._close(site, record)
            yield checked
            if self.results == goal:
                break
        self._leave_out(f"the round closed at its goal, {goal}" if self.results == goal else "")

    def _leave_out(self, reason: str) -> None:
        """Account for who has not answered."""
        for site, since in sorted(self._since.items()):
            seconds = time.time() - since
            record = SiteRound(outcome=self._unanswered, seconds=seconds, reason=reason)
            if self._unanswered == WORKING:
                self.sites[site] = record
            else:
                self._close(site, record)

    def _close(self, site: str, record: SiteRound) -> None:
        self._since.pop(site, None)
        before = self.sites.get(site)
        self.results += (record.outcome == "result") - (
            before is not None and before.outcome == "result"
        )
        self.sites[site] = record
        metrics = self._metrics
        metrics.awaited_since.labels(site).set(0)
        metrics.replies.labels(site, record.outcome).inc()
        metrics.staleness.labels(site).set(record.staleness)
        if record.clipped:
            metrics.clipped.labels(site).inc()
        if record.update_norm is not None:
            metrics.update_norm.labels(site).set(record.update_norm)
        if record.bytes:
            metrics.update_bytes.labels(site, "encoded").inc(record.bytes)
            metrics.update_bytes.labels(site, "plain").inc(record.plain_bytes)
        for name, gauge in (
            ("epsilon", metrics.epsilon_spent),
            ("epsilon_left", metrics.epsilon_left),
            ("noise_multiplier", metrics.noise_multiplier),
            (ENCODING_ERROR, metrics.encoding_error),
        ):
            if name in record.metrics:
                gauge.labels(site).set(record.metrics[name])

    def _look_at(self, site: str, reply: Message) -> tuple[Message, SiteRound]:
        seconds = time.time() - self._since.get(site, self._started)
        answered = reply.metadata.reply_to_message_id
        staleness = max(0, self._number - _round_of(reply, self._number))
        if reply.has_error():
            label = error_label(reply.error)
            reason = reason_of(reply.error.reason, label)
            return reply, SiteRound(
                outcome=label, seconds=seconds, reason=reason, staleness=staleness, reply=answered
            )
        try:
            metrics = checked_metrics(reply, self._checks)
            terms = checked_terms(reply, metrics)
            travelled, norm, reply = self._checked_update(reply)
        except UpdateError as unfit:
            reason = reason_of(unfit.message, unfit.label)
            record = SiteRound(
                outcome=unfit.label,
                seconds=seconds,
                reason=reason,
                staleness=staleness,
                reply=answered,
            )
            return _as_error(reply, unfit), record
        bound = self._checks.max_update_norm
        weight = metrics.pop(WEIGHT)
        return reply, SiteRound(
            outcome="result",
            seconds=seconds,
            weight=weight,
            update_norm=norm,
            clipped=norm is not None and bound is not None and norm > bound,
            metrics=metrics,
            terms=terms,
            staleness=staleness,
            encoding=travelled.encoding,
            bytes=travelled.bytes,
            plain_bytes=travelled.plain_bytes,
            reply=answered,
        )

    def _checked_update(self, reply: Message) -> tuple[Travelled, float | None, Message]:
        if self._specs is None:
            return Travelled(), None, reply
        travelled, reply = decoded(reply, self._specs, self._travelling)
        frozen = self._travelling.frozen
        norm, reply = checked_update(reply, self._specs, self._checks, frozen=frozen)
        return travelled, norm, reply


def _round_of(reply: Message, default: int) -> int:
    """The round in which a reply was asked for; the link sees to it that the site says so."""
    group = reply.metadata.group_id
    return int(group) if group.isdecimal() else default


def _as_error(reply: Message, error: UpdateError) -> Message:
    envelope = Envelope.of(reply, reply.metadata.message_id)
    return open_envelope(envelope, FlowerError(error.exit_code, error.message))

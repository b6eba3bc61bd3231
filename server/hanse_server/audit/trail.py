"""What the server writes down of a run, in ``audit.jsonl``; it holds no weight and no metric.

The events, in the order in which they can come::

    started      a server took up the run: versions, run, job's digest, the last durable round
    joined       a site was let in: its name, its certificate's fingerprint
    turned_away  a site was not let in, or sent away: why
    left         a site's stream has ended
    instructed   an instruction for a site: id, type, round, digest of its content, bytes
    accepted     its reply has arrived whole: digest of the message, of the arrays, of the metrics
    refused      it was answered by an error, by the site or by the link in its place: why
    abandoned    the round goes on without the reply
    late         the reply came after that
    left_out     the reply arrived, but did not fit: why
    kept         a round ended: its outcome, the model's digest, which replies went into it
    settled      the sites need no longer keep these replies
    stopped      the server ended in good order: why

What is durable when: the ``instructed`` lines before an instruction is sent; all lines of a round
up to its ``kept`` before the round's model, history and checkpoint are written; all others within
a second or so. So of what a model is made of nothing can be missing from the trail. What a crash
leaves is the other way about: replies that were accepted for a round that was never kept, whose
lines may be missing since nothing came of them; and a ``kept`` line of a round whose checkpoint
was not finished. The next ``started`` names the last round that is durable, which takes all later
``kept`` lines back: the round is run and told again, under the same ids, as a rule with the same
replies from the sites' outboxes. A line that a crash cut off is struck.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, Message
from hanse.errors import HanseError, TrailError, WorkspaceError
from hanse.flower import METRICS, WEIGHT, Envelope, error_label
from hanse.trail import Trail
from hanse.wire.message import Encoded
from hanse.wire.protocol import versions

from hanse_server.audit.digests import metrics_digest, model_digest
from hanse_server.audit.pace import Pace
from hanse_server.terms import reason_of

if TYPE_CHECKING:
    from hanse_server.history import RoundRecord
    from hanse_server.journal import Entry

log = logging.getLogger("hanse.server")


class ServerTrail(Trail):
    """The trail of a run; its path is None in a simulation, where nothing is sent.

    Raises:
        WorkspaceError: where it cannot be written.
    """

    broken = TrailError
    unwritable = WorkspaceError

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self._pace = Pace()
        self._unwritten = False

    # --- the server's life --------------------------------------------------------------------

    def started(self, run_id: int, job_digest: str, after: int) -> None:
        """A server takes up the run; ``after`` is its last round that is durable."""
        told = {"run": str(run_id), "job": job_digest, "after": after}
        self.write("started", versions=versions(), **told)

    def stopped(self, error: BaseException | None) -> None:
        """The server ends; what has ended it may be that nothing can be written."""
        why = error.label if isinstance(error, HanseError) else type(error).__name__
        with suppress(WorkspaceError):
            self.write("stopped", reason="done" if error is None else why)

    def catch_up(self) -> None:
        """Write what was noted; of a full disk those learn who next have to write."""
        try:
            self.flush()
        except WorkspaceError as error:
            if not self._unwritten:
                log.warning("%s", error)
            self._unwritten = True
        else:
            self._unwritten = False

    # --- the sites ----------------------------------------------------------------------------

    def joined(self, site: str, fingerprint: str, version: str) -> None:
        """A site was let in, which says that it has this version of Hanse."""
        self._come_and_go("joined", site, fingerprint=fingerprint, hanse=version[:32])

    def turned_away(self, site: str, fingerprint: str, error: HanseError) -> None:
        """A site was not let in, or was sent away."""
        told = {"label": error.label, "reason": reason_of(error.message, error.label)}
        self._come_and_go("turned_away", site, fingerprint=fingerprint, **told)

    def left(self, site: str, why: str) -> None:
        """A site's stream has ended."""
        self._come_and_go("left", site, reason=why)

    def _come_and_go(self, event: str, site: str, **details: Any) -> None:
        untold = self._pace.untold(event, site)
        if untold is not None:
            self.note(event, site=site, **details, **({"untold": untold} if untold else {}))

    # --- messages -----------------------------------------------------------------------------

    def instructed(self, instructions: Iterable[tuple[str, Envelope, Encoded | None]]) -> None:
        """Instructions, each with its site, are about to be sent; told before if not encoded."""
        for site, envelope, encoded in instructions:
            if encoded is None:
                continue
            told = {"digest": encoded.digest.hex(), "bytes": encoded.body_size}
            self.note("instructed", site=site, **_of(envelope), **told)
        self.flush()

    def answered(self, site: str, asked: Envelope, reply: Message, **arrived: Any) -> None:
        """A reply has arrived whole, or the link answers in its place.

        Args:
            arrived: digests and size of the reply as it arrived.
        """
        if self.path is None:
            return
        told = {"site": site, **_of(asked), **arrived}
        if reply.has_error():
            label = error_label(reply.error)
            self.note("refused", **told, label=label, reason=reason_of(reply.error.reason, label))
            return
        metrics = {name: dict(each) for name, each in reply.content.metric_records.items()}
        weight = metrics.get(METRICS, {}).get(WEIGHT)
        known = isinstance(weight, int | float) and math.isfinite(weight)
        told |= {"metrics": metrics_digest(metrics), "weight": weight if known else None}
        self.note("accepted", **told)

    def abandoned(self, site: str, asked: Envelope) -> None:
        """The round goes on without a reply."""
        self.note("abandoned", site=site, **_of(asked))

    def late(self, site: str, instruction: str) -> None:
        """A reply came that had been abandoned."""
        self.note("late", site=site, id=instruction)

    # --- rounds -------------------------------------------------------------------------------

    def kept(self, record: RoundRecord, arrays: ArrayRecord, released: ArrayRecord) -> None:
        """A round has ended, and is about to be made durable."""
        if self.path is None:
            return
        asked = {"train": record.sites, "evaluate": record.judged}
        for kind, sites in asked.items():
            for name, site in sites.items():
                if site.reply and site.outcome != "result":
                    told = {"type": kind, "round": str(record.round)}
                    why = {"label": site.outcome, "reason": site.reason}
                    self.note("left_out", id=site.reply, site=name, **told, **why)
        model = model_digest(arrays)
        same = released is arrays
        self.write(
            "kept",
            round=str(record.round),
            outcome=record.outcome,
            model=model,
            released=model if same else model_digest(released),
            folded=went_in(record, "train"),
            judged=went_in(record, "evaluate"),
        )

    def settled(self, entries: Iterable[Entry]) -> None:
        """The sites need no longer keep these."""
        told: dict[str, list[str]] = {}
        for entry in entries:
            told.setdefault(entry.site, []).append(entry.instruction)
        if told:
            self.note("settled", sites=told)


def went_in(record: RoundRecord, kind: str) -> dict[str, str]:
    """The replies that a round's outcome was made of, each with its site.

    Args:
        kind: ``train`` for the model, ``evaluate`` for what was measured of it.
    """
    if kind == "train" and record.outcome != "completed":
        return {}  # too few: whatever arrived was not used
    sites = record.sites if kind == "train" else record.judged
    results = {name: site.reply for name, site in sites.items() if site.outcome == "result"}
    return {reply: name for name, reply in sorted(results.items()) if reply}


def _of(asked: Envelope) -> dict[str, str]:
    return {"id": asked.message_id, "type": asked.message_type, "round": asked.group_id}

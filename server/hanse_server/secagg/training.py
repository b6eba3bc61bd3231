"""A round's training under secure aggregation: a session, or another where one is lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, Message
from hanse.errors import SecureAggregationError, StrategyError
from hanse.job import Job

from hanse_server.grid import HanseGrid
from hanse_server.history import SiteRound
from hanse_server.metrics import ServerMetrics
from hanse_server.secagg.round import SecureOutcome, SecureRound, SessionLostError, Show
from hanse_server.secagg.transcript import Transcript
from hanse_server.updates import TensorSpec, specs_of

log = logging.getLogger("hanse.server")


class SecureTraining:
    """Puts the stages of secure aggregation around the training of a job's rounds.

    Args:
        folder: of the workspace; the session under way is kept there.
    """

    def __init__(
        self, job: Job, grid: HanseGrid, metrics: ServerMetrics, folder: Path, show: Show
    ) -> None:
        self._job = job
        self._grid = grid
        self._metrics = metrics
        self._file = folder / "session.json"
        self._show = show

    def run(self, number: int, messages: Sequence[Message], arrays: ArrayRecord) -> SecureOutcome:
        """Train on the sites that ``messages`` of the strategy go to.

        Raises:
            StrategyError: if the model has state of which there is no sum.
        """
        specs = specs_of(arrays)
        _check_summable(specs)

        def train(transcript: Transcript) -> SecureOutcome:
            session = SecureRound(
                self._job, self._grid, self._metrics, self._show, transcript, number, messages
            )
            outcome = session.run(specs)
            return replace(outcome, sites=_with_earlier(outcome.sites, transcript.earlier))

        transcript = Transcript.resume(self._file, number)
        try:
            return train(transcript)
        except SessionLostError as lost:
            log.warning("round %d begins anew, in a fresh session: %s", number, lost)
            return train(transcript.begin_anew())


def _with_earlier(
    sites: Mapping[str, SiteRound], earlier: Mapping[str, int]
) -> dict[str, SiteRound]:
    """What each site did, and how often it had trained before in sessions that were lost."""
    away = SiteRound(
        outcome=SecureAggregationError.label,
        seconds=0.0,
        reason="it trained in a session that could not go on, and took no part in the next",
    )
    told = {name: replace(away, earlier=times - 1) for name, times in earlier.items()}
    return told | {
        name: replace(site, earlier=earlier.get(name, 0)) for name, site in sites.items()
    }


def _check_summable(specs: dict[str, TensorSpec]) -> None:
    odd = [name for name, spec in specs.items() if not spec.dtype.is_floating_point]
    if odd:
        raise StrategyError(
            f"{odd[0]} of the model is {specs[odd[0]].dtype}: secure aggregation sums "
            f"floating-point numbers only ({len(odd)} such)",
            remedy="Use a model without counters and flags in its state, or no secure_aggregation.",
        )

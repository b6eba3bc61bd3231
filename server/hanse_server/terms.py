"""What a reply tells besides its update: numbers by name, and on what terms they left the site."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from flwr.app import ConfigRecord, Message
from hanse.aggregation import Checks
from hanse.errors import UpdateError
from hanse.flower import TERMS, WEIGHT, config_of
from hanse.identity import METRIC_NAME
from hanse.plain import plain

from hanse_server.history import Terms
from hanse_server.strategies.average import only_metrics

MOST_METRICS = 100
"""Metrics of one reply: their names become labels in Prometheus, and curves of a report."""

REASON_LENGTH = 500
"""Characters of what a site says of a failure."""

_NAME = re.compile(METRIC_NAME)


def checked_metrics(reply: Message, checks: Checks) -> dict[str, float]:
    """The numbers of a reply.

    Raises:
        UpdateError: if there are too many, or one has an odd name, is not finite, is out of the
            range that ``checks`` gives it, or is a weight that is not above 0 or too large.
    """
    metrics = only_metrics(reply.content)
    if len(metrics) > MOST_METRICS:
        raise UpdateError(f"{len(metrics)} metrics are more than {MOST_METRICS}")
    odd = next((name for name in metrics if not _NAME.fullmatch(name)), None)
    if odd is not None:
        raise UpdateError(f"{odd[:64]!r} is no name of a metric")
    wrong = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
    if wrong is not None:
        raise UpdateError(f"metric {wrong} is not finite")
    if metrics.get(WEIGHT, 0.0) <= 0.0:
        raise UpdateError(f"{WEIGHT} = {metrics.get(WEIGHT)} is not above 0")
    if checks.max_weight is not None and metrics[WEIGHT] > checks.max_weight:
        raise UpdateError(
            f"{WEIGHT} = {metrics[WEIGHT]:g} is above the largest, {checks.max_weight:g} "
            "(checks.max_weight)"
        )
    for name, (smallest, largest) in checks.metrics.items():
        value = metrics.get(name, smallest)
        if not smallest <= value <= largest:
            raise UpdateError(
                f"{name} = {value:g} is not within {smallest:g} and {largest:g} (checks.metrics)"
            )
    return metrics


def checked_terms(reply: Message, metrics: Mapping[str, float]) -> Terms:
    """The terms of a reply.

    Raises:
        UpdateError: if they name what is not among ``metrics``, or noise without a multiplier.
    """
    said = config_of(reply.content, TERMS)
    noised, exact = (_names(said, key, metrics) for key in ("noised", "exact"))
    noise, count = said.get("noise_multiplier", 0.0), said.get("count", "")
    if not isinstance(noise, float) or not math.isfinite(noise) or (noise > 0.0) != bool(noised):
        raise UpdateError(f"{TERMS}: noise_multiplier = {str(noise)[:64]} of {len(noised)} metrics")
    if count not in ("public", "declared", ""):
        raise UpdateError(f"{TERMS}: count = {str(count)[:64]!r} is neither public nor declared")
    return Terms(count=str(count), noised=noised, exact=exact, noise_multiplier=noise)


def _names(said: ConfigRecord, key: str, metrics: Mapping[str, float]) -> tuple[str, ...]:
    names = said.get(key, [])
    if not isinstance(names, list):
        raise UpdateError(f"{TERMS}: {key} is no list")
    if not {*names} <= {*metrics}:
        raise UpdateError(f"{TERMS}: {key} names what the reply does not hold")
    return tuple(str(name) for name in names)


def reason_of(text: str | None, label: str) -> str:
    """What a site says of a failure, printable and at most so long; its label if nothing."""
    return plain(text or label, REASON_LENGTH)

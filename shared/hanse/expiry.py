"""Certificates end: shown as a metric, and told in the log while there is time to renew."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta

from prometheus_client import Gauge

log = logging.getLogger("hanse.tls")

SOON = timedelta(days=14)
"""A certificate that ends within this time is told of."""

_TELL_SECONDS = 86_400.0


def days_left(expires: datetime) -> int:
    """Whole days until then; negative afterwards."""
    return (expires - datetime.now(UTC)).days


class Expiry:
    """Shows in ``gauge`` when certificates end, and warns once a day of those that end soon.

    Args:
        gauge: Unix time by one label, which tells the certificates apart.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._told: dict[tuple[str, datetime], float] = {}

    def show(self, label: str, expires: datetime, whose: str) -> None:
        """Show the end of a certificate; ``whose`` is what a warning calls it."""
        self._gauge.labels(label).set(expires.timestamp())
        now = time.monotonic()
        told = self._told.get((label, expires))
        if expires - datetime.now(UTC) > SOON or (told and now - told < _TELL_SECONDS):
            return
        self._told[label, expires] = now
        log.warning(
            "the certificate of %s ends in %d days, on %s: renew it",
            whose,
            days_left(expires),
            expires.strftime("%Y-%m-%d %H:%M UTC"),
        )

    def forget(self, label: str) -> None:
        """Show a certificate no longer: nobody is let in with it."""
        self._gauge.remove(label)
        for key in [key for key in self._told if key[0] == label]:
            del self._told[key]

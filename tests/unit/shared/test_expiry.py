"""When certificates end: the metric, and a warning a day while there is time."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
from hanse.expiry import SOON, Expiry, days_left
from prometheus_client import CollectorRegistry, Gauge

NOW = datetime.now(UTC)


@pytest.fixture
def gauge() -> Gauge:
    return Gauge("ends", "ends", ["whose"], registry=CollectorRegistry())


def values(gauge: Gauge) -> dict[str, float]:
    (family,) = gauge.collect()
    return {sample.labels["whose"]: sample.value for sample in family.samples}


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return len([record for record in caplog.records if record.levelno == logging.WARNING])


def test_the_metric_is_unix_time(gauge: Gauge) -> None:
    expiry, ends = Expiry(gauge), NOW + timedelta(days=200)

    expiry.show("server", ends, "this server")
    assert values(gauge) == {"server": ends.timestamp()}

    expiry.forget("server")
    expiry.forget("server")
    assert values(gauge) == {}


@pytest.mark.parametrize(("left", "told"), [(timedelta(days=1), 1), (-timedelta(days=1), 1)])
def test_a_warning_comes_once_a_day(
    gauge: Gauge,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    left: timedelta,
    told: int,
) -> None:
    expiry = Expiry(gauge)
    clock = 5.0
    monkeypatch.setattr("hanse.expiry.time.monotonic", lambda: clock)
    for _ in range(3):
        expiry.show("server", NOW + left, "this server")
    assert warnings(caplog) == told
    clock += 86_401
    expiry.show("server", NOW + left, "this server")
    assert warnings(caplog) == told + 1


def test_no_warning_while_there_is_time_nor_after_the_renewal(
    gauge: Gauge, caplog: pytest.LogCaptureFixture
) -> None:
    expiry = Expiry(gauge)
    expiry.show("north", NOW + SOON + timedelta(hours=1), "site north")
    assert warnings(caplog) == 0
    expiry.show("north", NOW + SOON - timedelta(hours=1), "site north")
    assert warnings(caplog) == 1
    expiry.show("north", NOW + timedelta(days=300), "site north")
    assert warnings(caplog) == 1


def test_days_left_are_whole() -> None:
    assert days_left(datetime.now(UTC) + timedelta(days=3, hours=1)) == 3
    assert days_left(datetime.now(UTC) - timedelta(hours=1)) == -1

"""The metrics that exist, against ``deploy/prometheus/README.md`` and Prometheus' conventions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hanse.metrics import GpuCollector
from hanse_client.metrics import ClientMetrics
from hanse_server.metrics import ServerMetrics
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
ROW = re.compile(r"^\| `(hanse_\w+)` \| (\w+) \|(.*?)\|(.+?)\|(.+)\|$", flags=re.MULTILINE)
NOT_BASE_UNITS = re.compile(r"_(ms|milliseconds|minutes|hours|kb|mb|gb|megabytes|percent)(_|$)")
SUFFIXES = {"counter": "_total", "info": "_info"}


@dataclass(frozen=True)
class Described:
    """A metric as its reader sees it."""

    name: str
    kind: str
    labels: tuple[str, ...]


def registered() -> list[Described]:
    registry = CollectorRegistry()
    ServerMetrics(registry)
    ClientMetrics(registry)
    found = []
    for collector in registry._collector_to_names:
        assert isinstance(collector, MetricWrapperBase)
        (metric,) = collector.describe()
        name = metric.name + SUFFIXES.get(metric.type, "")
        found.append(Described(name, metric.type, tuple(collector._labelnames)))
    gpus = [Described(metric.name, metric.type, ("gpu",)) for metric in GpuCollector().collect()]
    return found + gpus


def documented() -> list[Described]:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return [
        Described(name, kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _unit, _meaning in ROW.findall(text)
    ]


def test_every_metric_is_documented_as_it_is() -> None:
    assert len(documented()) == len(set(documented()))
    assert set(documented()) == set(registered())


@pytest.mark.parametrize("metric", registered(), ids=lambda metric: metric.name)
def test_a_name_follows_the_conventions(metric: Described) -> None:
    assert re.fullmatch(r"hanse_(server|client|gpu)_[a-z0-9_]*[a-z0-9]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not NOT_BASE_UNITS.search(metric.name), "seconds, bytes and ratios only"
    if metric.kind == "histogram":
        assert metric.name.endswith("_seconds")
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels)
    assert not {"le", "quantile", "job", "instance"} & set(metric.labels), "Prometheus' own"


def test_every_alert_is_documented_and_has_a_test() -> None:
    def alerts(file: str, pattern: str) -> list[str]:
        return re.findall(pattern, (FOLDER / file).read_text(encoding="utf-8"), re.MULTILINE)

    rules = alerts("alerts.yml", r"- alert: (\w+)$")
    assert len(rules) == len(set(rules))
    assert alerts("README.md", r"^\| `(Hanse\w+)` \|") == rules
    assert set(alerts("alerts_test.yml", r"alertname: (\w+)")) == set(rules)


def test_alerts_ask_for_metrics_that_exist() -> None:
    text = (FOLDER / "alerts.yml").read_text(encoding="utf-8")

    asked = set(re.findall(r"\bhanse_\w+", text))

    assert asked
    assert asked <= {metric.name for metric in registered()}

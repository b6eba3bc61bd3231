"""Metrics of processes that end before anybody can scrape them."""

from __future__ import annotations

from pathlib import Path

from hanse.metrics import Phases, TextFile
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families


class Process:
    """One of many, with metrics of its own."""

    def __init__(self, path: Path) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("done_total", "x", ["kind"], registry=self.registry)
        self.gauge = Gauge("left", "x", registry=self.registry)
        self.labelled = Gauge("backend", "x", ["name"], registry=self.registry)
        self.phases = Phases("p", ["work"], self.registry)
        self.file = TextFile(path)
        self.file.restore([self.gauge, self.labelled])

    def end(self) -> None:
        self.file.write(self.registry, without=["p_phase"])


def read(path: Path) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def test_counters_and_histograms_add_up_and_gauges_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    first = Process(path)
    first.counter.labels("a").inc(2)
    first.gauge.set(3)
    first.labelled.labels("x").set(1)
    with first.phases.during("work"):
        pass
    first.end()
    second = Process(path)
    second.counter.labels("b").inc()
    second.labelled.clear()
    second.labelled.labels("y").set(1)
    with second.phases.during("work"):
        pass
    second.end()
    third = Process(path)
    third.counter.labels("a").inc()
    third.gauge.set(0)
    third.end()
    found = read(path)
    assert found["done_total", "a"] == 3
    assert found["done_total", "b"] == 1
    assert found["left",] == 0
    assert found["backend", "y"] == 1
    assert ("backend", "x") not in found
    assert found["p_phase_duration_seconds_count", "work"] == 2
    assert found["p_phase_duration_seconds_bucket", "+Inf", "work"] == 2
    assert not any(name.endswith("_created") or name == "p_phase" for name, *_ in found)


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    path.write_text("done_total{kind= 1\n")
    process = Process(path)
    process.counter.labels("a").inc()
    process.end()
    assert read(path)["done_total", "a"] == 1

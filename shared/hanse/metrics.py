"""What the Prometheus metrics of both sides have in common: one registry, one endpoint, phases.

Each side declares its metrics in its own ``metrics.py``. A registry is always passed in, never
the global one, so that tests and simulations can hold many sides in one process.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from hanse.durable import write_file
from hanse.errors import PortInUseError

SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)


class Phases:
    """What a side is doing, as a gauge that is 1 for one phase, and how long each took."""

    def __init__(self, prefix: str, names: Iterable[str], registry: CollectorRegistry) -> None:
        self._names = tuple(names)
        self._gauge = Gauge(
            f"{prefix}_phase", "1 for the phase that is under way.", ["phase"], registry=registry
        )
        self._seconds = Histogram(
            f"{prefix}_phase_duration_seconds",
            "Time spent in a phase.",
            ["phase"],
            buckets=SECONDS,
            registry=registry,
        )
        for name in self._names:
            self._gauge.labels(name).set(0)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Mark ``name`` as under way, and record how long it took."""
        if name not in self._names:
            raise ValueError(f"{name!r} is not one of {self._names}")
        self._gauge.labels(name).set(1)
        started = time.monotonic()
        try:
            yield
        finally:
            self._gauge.labels(name).set(0)
            self._seconds.labels(name).observe(time.monotonic() - started)


class Unseen:
    """Stands for metrics that nobody will look at: whatever is asked of it, it does nothing."""

    def __getattr__(self, name: str) -> Unseen:
        return self

    def __call__(self, *_: object, **__: object) -> Unseen:
        return self

    def __enter__(self) -> Unseen:
        return self

    def __exit__(self, *_: object) -> None:
        pass


UNSEEN: Any = Unseen()


class GpuCollector(Collector):
    """Memory in use and utilisation of each GPU that torch sees; nothing where there is none."""

    def collect(self) -> Iterable[Metric]:
        used = GaugeMetricFamily(
            "hanse_gpu_memory_used_bytes", "GPU memory in use.", labels=["gpu"]
        )
        total = GaugeMetricFamily("hanse_gpu_memory_total_bytes", "GPU memory.", labels=["gpu"])
        busy = GaugeMetricFamily(
            "hanse_gpu_busy_ratio", "Share of time the GPU is busy.", labels=["gpu"]
        )
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            free, size = torch.cuda.mem_get_info(index)
            used.add_metric([str(index)], size - free)
            total.add_metric([str(index)], size)
            try:
                busy.add_metric([str(index)], torch.cuda.utilization(index) / 100)
            except (ModuleNotFoundError, RuntimeError):  # NVML's bindings are optional
                continue
        return (used, total, busy)


def new_registry() -> CollectorRegistry:
    """A registry with the process's and the GPUs' own metrics in it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(GpuCollector())
    return registry


class TextFile:
    """Metrics of processes that end before anybody can scrape them, in a file of the text format.

    Such files are what node_exporter's textfile collector reads. Counters and histograms add up
    over the processes; of a gauge the last value holds. One process at a time may do this.

    Args:
        path: named ``*.prom``; what is damaged is begun anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            found = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            found = []
        self._before = {family.name: family for family in found}

    def restore(self, gauges: Iterable[Gauge]) -> None:
        """Give gauges the values that they had."""
        for gauge in gauges:
            for name in {family.name for family in gauge.collect()} & self._before.keys():
                for sample in self._before[name].samples:
                    (gauge.labels(**sample.labels) if sample.labels else gauge).set(sample.value)

    def write(self, registry: CollectorRegistry, *, without: Collection[str] = ()) -> None:
        """Write what a registry holds, on top of what there was.

        Args:
            without: names of families to leave out.
        """
        families = [each for each in registry.collect() if each.name not in without]
        write_file(self._path, generate_latest(_Families([self._added(f) for f in families])))

    def _added(self, family: Metric) -> Metric:
        """A family with what there was before: sums of what only grows."""
        samples = {
            (each.name, tuple(sorted(each.labels.items()))): each.value
            for each in family.samples
            if not each.name.endswith("_created")  # of this process: it says nothing of the sums
        }
        if family.type in ("counter", "histogram") and family.name in self._before:
            for each in self._before[family.name].samples:
                key = each.name, tuple(sorted(each.labels.items()))
                samples[key] = samples.get(key, 0.0) + each.value
        added = Metric(family.name, family.documentation, family.type)
        for (name, labels), value in samples.items():
            added.add_sample(name, dict(labels), value)
        return added


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


@contextmanager
def endpoint(registry: CollectorRegistry, host: str, port: int) -> Iterator[None]:
    """Serve ``registry`` at ``http://host:port/metrics`` while the context lasts; port 0: nowhere.

    Raises:
        PortInUseError: if something else listens there.
    """
    if port == 0:
        yield
        return
    try:
        server, thread = start_http_server(port, host, registry=registry)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortInUseError(
            f"metrics port {port} on {host} is taken", remedy="Choose another metrics port."
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

"""What the Prometheus metrics of both sides have in common: one registry, one endpoint, phases.

Each side declares its metrics in its own ``metrics.py``. A registry is always passed in, never
the global one, so that tests and simulations can hold many sides in one process.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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

"""Weighted means of the metrics that sites release."""

from __future__ import annotations

from flwr.app import MetricRecord, RecordDict
from hanse.flower import WEIGHT


def only_metrics(content: RecordDict) -> dict[str, float]:
    """The scalar metrics of a reply, by name; lists are left out."""
    return {
        name: float(value)
        for record in content.values()
        if isinstance(record, MetricRecord)
        for name, value in record.items()
        if isinstance(value, int | float)
    }


class RunningMetrics:
    """The weighted mean of each metric over the replies that carry it, folded one by one."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def fold(self, content: RecordDict) -> float:
        """Fold one reply's metrics; returns the reply's weight."""
        metrics = only_metrics(content)
        weight = metrics.pop(WEIGHT)
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value
            self._weights[name] = self._weights.get(name, 0.0) + weight
        return weight

    def mean(self) -> MetricRecord | None:
        """The means, or None if no reply carried any metric."""
        if not self._sums:
            return None
        return MetricRecord({name: self._sums[name] / self._weights[name] for name in self._sums})

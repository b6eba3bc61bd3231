"""The server's Prometheus metrics; ``deploy/prometheus/README.md`` explains each."""

from __future__ import annotations

import hanse
from hanse.metrics import SECONDS, UNSEEN, Phases
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

PHASES = (
    "waiting",
    "agreeing_on_masks",
    "sharing_masks",
    "training",
    "agreeing_on_survivors",
    "unmasking",
    "evaluating",
    "checkpointing",
)
MOST_NAMES = 100
"""Names of metrics that are shown over a run: each is a series in Prometheus, kept for long."""

OUTCOMES = ("completed", "missed_quorum")


class ServerMetrics:
    """All metrics of one server, in the registry given.

    Args:
        registry: where they are registered; a fresh one for each server.
        by_site: whether those are kept that are of single sites.
    """

    def __init__(self, registry: CollectorRegistry, *, by_site: bool = True) -> None:
        self.registry = registry
        site = ["site"]

        def gauge(name: str, text: str, labels: list[str] | None = None) -> Gauge:
            if "site" in (labels or ()) and not by_site:
                return UNSEEN  # type: ignore[no-any-return]
            return Gauge(f"hanse_server_{name}", text, labels or [], registry=registry)

        def counter(name: str, text: str, labels: list[str] | None = None) -> Counter:
            if "site" in (labels or ()) and not by_site:
                return UNSEEN  # type: ignore[no-any-return]
            return Counter(f"hanse_server_{name}", text, labels or [], registry=registry)

        self.info = Info("hanse_server", "Version and job of this server.", registry=registry)
        self.info.info({"version": hanse.__version__})
        self.phases = Phases("hanse_server", PHASES, registry)

        self.round = gauge("round", "The round under way, counted from 1.")
        self.rounds_planned = gauge("rounds_planned", "Rounds that the job asks for.")
        self.rounds = counter("rounds_total", "Rounds ended, by outcome.", ["outcome"])
        for outcome in OUTCOMES:
            self.rounds.labels(outcome)  # from 0: the first of a kind counts as an increase
        self.round_seconds = Histogram(
            "hanse_server_round_duration_seconds",
            "Wall time of a round.",
            buckets=SECONDS,
            registry=registry,
        )
        self.round_deadline = gauge(
            "round_deadline_timestamp_seconds", "When the round closes at the latest; 0: none."
        )

        self.connected = gauge("site_connected", "1 while the site's stream is open.", site)
        self.reconnects = counter("site_reconnects_total", "Streams opened after the first.", site)
        self.certificate_expiry = gauge(
            "certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, and its authority.",
            ["certificate"],
        )
        self.site_certificate_expiry = gauge(
            "site_certificate_expiry_timestamp_seconds",
            "When the certificate ends that the site has shown last.",
            site,
        )
        self.refused = counter(
            "connections_refused_total", "Streams refused at the handshake.", ["reason"]
        )
        self.dismissed = counter(
            "site_dismissed_total", "Streams ended for what the site did.", ["site", "reason"]
        )
        self.awaited_since = gauge(
            "site_awaited_since_timestamp_seconds",
            "Since when a reply of the site is awaited; 0: nothing is.",
            site,
        )
        self.replies = counter(
            "replies_total",
            "Replies by site and outcome (`result`, or why not).",
            ["site", "outcome"],
        )
        self.received_bytes = counter("received_bytes_total", "Payload received.", site)
        self.sent_bytes = counter("sent_bytes_total", "Payload sent.", site)
        self.update_norm = gauge("site_update_norm", "L2 norm of the site's last update.", site)
        self.update_bytes = counter(
            "update_bytes_total",
            "Bytes of the site's updates as they came (`encoded`), and in the model's dtypes"
            " (`plain`).",
            ["site", "form"],
        )
        self.encoding_error = gauge(
            "site_encoding_error",
            "What encoding changed of the site's last update, relative, where the site says so.",
            site,
        )
        self.clipped = counter(
            "site_updates_clipped_total",
            "Updates scaled down to the largest norm that the job lets count.",
            site,
        )
        self.staleness = gauge(
            "site_staleness_rounds",
            "Rounds that ended between an instruction and the site's last reply to one.",
            site,
        )
        self.epsilon_spent = gauge(
            "site_epsilon_spent", "Epsilon that the site says it has spent, where it says so.", site
        )
        self.epsilon_left = gauge(
            "site_epsilon_left", "Epsilon left of the site's budget, where it says so.", site
        )
        self.noise_multiplier = gauge(
            "site_noise_multiplier", "Noise multiplier, where the site says so.", site
        )
        self._model_metric = gauge(
            "model_metric",
            "A metric of the global model after the last round.",
            ["metric", "source"],
        )
        self._named: set[str] = set()

    def show_of_model(self, metric: str, source: str, value: float) -> None:
        """Show a metric of the model; of names that sites make up, the first so many."""
        if metric in self._named or len(self._named) < MOST_NAMES:
            self._named.add(metric)
            self._model_metric.labels(metric, source).set(value)

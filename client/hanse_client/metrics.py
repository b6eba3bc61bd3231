"""The site's Prometheus metrics; ``deploy/prometheus/README.md`` explains each."""

from __future__ import annotations

import hanse
from hanse.metrics import Phases
from prometheus_client import CollectorRegistry, Counter, Gauge, Info

OF_THE_STREAM = (
    "hanse_client_connected",
    "hanse_client_reconnects",
    "hanse_client_waiting_since_timestamp_seconds",
    "hanse_client_certificate_expiry_timestamp_seconds",
    "hanse_client_phase",
)
"""What says nothing of a site behind a SuperNode, which has the connection."""

PHASES = ("training", "encoding", "evaluating", "accounting")


class ClientMetrics:
    """All metrics of one site, in the registry given.

    They are for the site's own eyes: some of them (training loss, norms, fractions) are
    functions of private records, and the endpoint is the administrator's to guard.

    Args:
        registry: where they are registered; a fresh one for each site.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def gauge(name: str, text: str, labels: list[str] | None = None) -> Gauge:
            return Gauge(f"hanse_client_{name}", text, labels or [], registry=registry)

        def counter(name: str, text: str, labels: list[str] | None = None) -> Counter:
            return Counter(f"hanse_client_{name}", text, labels or [], registry=registry)

        self.info = Info("hanse_client", "Version and device of this site.", registry=registry)
        self.info.info({"version": hanse.__version__})
        self.phases = Phases("hanse_client", PHASES, registry)

        self.connected = gauge("connected", "1 while the stream to the server is open.")
        self.waiting_since = gauge(
            "waiting_since_timestamp_seconds",
            "Since when the site waits: `server` for a connection, `instruction` for work.",
            ["what"],
        )
        self.certificate_expiry = gauge(
            "certificate_expiry_timestamp_seconds",
            "When this site's certificate ends, and its authority.",
            ["certificate"],
        )
        self.reconnects = counter("reconnects_total", "Streams opened after the first.")
        self.received_bytes = counter("received_bytes_total", "Payload received.")
        self.sent_bytes = counter("sent_bytes_total", "Payload sent.")
        self.outbox = gauge("outbox_replies", "Replies held until the server has settled them.")

        self.round = gauge("round", "The round last asked for.")
        self.instructions = counter(
            "instructions_total",
            "Instructions by type and outcome (`result`, or why not).",
            ["type", "outcome"],
        )
        self.refusals = counter("refusals_total", "Instructions refused by a gate.", ["reason"])
        self.epsilon_spent = gauge("epsilon_spent", "Epsilon spent on this data set, ever.")
        self.epsilon_left = gauge("epsilon_left", "Epsilon left of the budget.")
        self.noise_multiplier = gauge("noise_multiplier", "Noise multiplier of the last round.")
        self.clipped_fraction = gauge(
            "clipped_fraction", "Share of the records of the last round whose gradient was clipped."
        )
        self.dp_backend = gauge(
            "dp_backend", "1 for the engine's backend of the last private round.", ["backend"]
        )
        self.update_norm = gauge("update_norm", "L2 norm of the last update.")
        self.update_bytes = counter(
            "update_bytes_total",
            "Bytes of encoded updates as they leave (`encoded`), and in the model's dtypes"
            " (`plain`).",
            ["form"],
        )
        self.encoding_error = gauge(
            "encoding_error", "What encoding changed of the last update, relative to its L2 norm."
        )
        self.train_loss = gauge("train_loss", "Mean training loss of the last round.")

    def gauges(self) -> list[Gauge]:
        """All gauges."""
        return [each for each in vars(self).values() if isinstance(each, Gauge)]

"""The statement that goes with every model: how it came about, and what privacy it kept."""

from __future__ import annotations

from typing import Any

import hanse
from hanse.job import Job

from hanse_server.workspace import RoundRecord

NO_PRIVACY = "no privacy: this model was trained without differential privacy"
PRIVACY = (
    "Each site trained with DP-SGD on its own records: Poisson sampling, per-record clipping, "
    "Gaussian noise. Whoever sees this model and every update of its training learns about any "
    "one record of a site no more than that site's epsilon and delta allow. Metrics that a site "
    "released beside its updates are outside that."
)
RELEASED = ("epsilon", "epsilon_left", "delta", "noise_multiplier", "sampling_rate")


def model_statement(job: Job, record: RoundRecord) -> dict[str, Any]:
    """What is to be said of the model after ``record``'s round, as JSON.

    A site's numbers are those that its policy releases; what it keeps to itself is left out.
    """
    private = job.privacy.private
    return {
        "hanse": hanse.__version__,
        "job": job.name,
        "job_digest": job.digest,
        "round": record.round,
        "privacy": {
            "private": private,
            "mechanism": job.privacy.mechanism,
            "unit": "one record at one site, add-or-remove adjacency",
            "clipping_norm": job.privacy.clipping_norm if private else None,
            "statement": PRIVACY if private else NO_PRIVACY,
            "sites": {name: _released(site.metrics) for name, site in record.sites.items()},
        },
        "metrics": {"federated": record.federated, "central": record.central},
    }


def _released(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in RELEASED if name in metrics}

"""The statement that goes with every model: how it came about, and what privacy it kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hanse
from hanse.job import Job

from hanse_server.workspace import RoundRecord, SiteRound

NO_PRIVACY = "no privacy: this model was trained without differential privacy"
PRIVACY = (
    "Each site trained with DP-SGD on its own records: Poisson sampling, per-record clipping, "
    "Gaussian noise. Whoever sees this model and every update of its training learns about any "
    "one record of a site no more than that site's epsilon and delta allow. Metrics that a site "
    "released beside its updates are outside that."
)
RELEASED = ("epsilon", "epsilon_left", "delta", "noise_multiplier", "sampling_rate")


def model_statement(
    job: Job, record: RoundRecord, released: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What is to be said of the model after ``record``'s round, as JSON.

    Args:
        released: of each site that sent an update in this round or an earlier one, what it last
            said of its privacy (:func:`released_by`). What it keeps to itself is left out.
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
            "sites": released,
        },
        "metrics": {"federated": record.federated, "central": record.central},
    }


def released_by(sites: Mapping[str, SiteRound]) -> dict[str, dict[str, float]]:
    """What the sites that sent an update in a round said of their privacy, by name."""
    return {
        name: {kind: site.metrics[kind] for kind in RELEASED if kind in site.metrics}
        for name, site in sites.items()
        if site.outcome == "result"
    }

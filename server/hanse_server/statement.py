"""The statement that goes with every model: how it came about, and what privacy it kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import hanse
from hanse.job import Job

from hanse_server.costs import Kind, SiteCost
from hanse_server.history import RoundRecord

UNIT = (
    "One record at one site, of those that it trains on or of those that it holds out to judge "
    "models by: data sets that differ by adding or removing one record (add-or-remove adjacency)."
)
NO_PRIVACY = "no privacy: this model was trained without differential privacy"
NO_BOUND = (
    f"{NO_PRIVACY}. Nothing bounds what it, or the updates that it was made from, may reveal about "
    "the records they come from."
)
PRIVACY = (
    "Each site trained with DP-SGD on its own records: Poisson sampling, per-record clipping, "
    "Gaussian noise. Whoever sees this model, every update of its training and every metric that "
    "left with noise learns about any one record of a site no more than that site's epsilon and "
    "delta allow. Metrics that left as they are, and what is not known, are outside that; they "
    "are listed by site."
)

SUMMED = (
    "Of the updates of a round the server learnt no more than their weighted sum (secure "
    "aggregation), so it could not check the norm of a single one. This holds while few of the "
    "sites are the server's own or side with it."
)
SUMMED_PRIVATELY = (
    f"{SUMMED} It is a second wall beside differential privacy: every epsilon here holds without "
    "it."
)
SUMMED_WITHOUT_PRIVACY = (
    f"{SUMMED} It is no differential privacy: nothing bounds what the sum may reveal about the "
    "records, and sums of rounds in which one site was away may reveal that site's update."
)


def model_statement(job: Job, record: RoundRecord, costs: Mapping[str, SiteCost]) -> dict[str, Any]:
    """What is to be said of the model after ``record``'s round, as JSON.

    Args:
        costs: of every site that was asked for anything up to that round.
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
            "unit": UNIT,
            "clipping_norm": job.privacy.clipping_norm if private else None,
            "statement": PRIVACY if private else NO_BOUND,
            "secure_aggregation": seen_in_sum(job),
            "sites": {
                name: {"sentence": site_sentence(name, cost, private=private)} | asdict(cost)
                for name, cost in costs.items()
            },
        },
        "metrics": {"federated": record.federated, "central": record.central},
    }


def seen_in_sum(job: Job) -> str | None:
    """What secure aggregation hid from the server; None of a job without it."""
    if not job.secure_aggregation.enabled:
        return None
    return SUMMED_PRIVATELY if job.privacy.private else SUMMED_WITHOUT_PRIVACY


def site_sentence(name: str, cost: SiteCost, *, private: bool) -> str:
    """What a data-protection officer has to know of one site, in a few sentences."""
    return " ".join([_of_run(name, cost, private=private), *_of_data_set(cost), *_beside(cost)])


def _of_run(name: str, cost: SiteCost, *, private: bool) -> str:
    if not cost.took_part:
        return f"No record of {name} took part in this run."
    if not private:
        return f"{name} took part without differential privacy: nothing bounds what was learnt."
    if cost.run is None:
        return f"What this run cost a record of {name} is not known here; its own ledger tells."
    return (
        f"In this run each record of {name} is protected by differential privacy with epsilon at "
        f"most {rounded_up(cost.run.epsilon)} at delta {cost.run.delta:g}."
    )


def _of_data_set(cost: SiteCost) -> Iterable[str]:
    told = cost.data_set
    if told is None:
        yield "What all runs together cost its data is in its own ledger, and was not released."
        return
    delta = "a delta that it did not release" if told.delta is None else f"delta {told.delta:g}"
    spent = f"cost epsilon {rounded_up(told.epsilon)} at {delta}, by its own ledger"
    if told.complete:
        yield f"All that was ever done with its data {spent}."
    else:
        yield (
            f"All that was done with its data up to round {told.stated_in} {spent}; what came "
            "after that it did not say."
        )


def _beside(cost: SiteCost) -> Iterable[str]:
    if noised := _listed(cost, "noised"):
        yield f"With noise, within its epsilon, it also released {noised}."
    if exact := _listed(cost, "exact"):
        yield f"As they are, outside epsilon, it released {exact}."
    if unknown := _listed(cost, "not known"):
        yield f"How it released {unknown} is not known: take that to be outside epsilon."
    if cost.count == "public":
        yield "It makes the number of its records public."
    elif not cost.count and cost.counted:
        yield "Whether its weight tells the number of its records is not known."


def _listed(cost: SiteCost, kind: Kind) -> str:
    names: defaultdict[str, list[str]] = defaultdict(list)
    for each in cost.disclosures:
        if each.kind == kind:
            names[each.records].append(each.name)
    return "; ".join(f"{', '.join(some)} of {records} records" for records, some in names.items())


def rounded_up(epsilon: float) -> str:
    """An epsilon to four decimals; what is written down must still hold."""
    return f"{math.ceil(round(epsilon * 1e4, 6)) / 1e4:g}"

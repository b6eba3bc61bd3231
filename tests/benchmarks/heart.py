"""Four hospitals on five random splits: accuracy with privacy, without, pooled and alone.

Accuracy and AUC on the held-out records of all hospitals together, by the job of the demo;
``private`` is the mean over several runs of fresh noise. A split is a ``holdout_seed``.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from hanse.examples import example
from hanse.job import load_job
from hanse.simulation import SimulatedSites
from hanse_server.demo.comparison import Judge, Row, baselines, trained
from hanse_server.simulation.sites import sites_of_folder

SPLITS = 5
NOISE_DRAWS = 4


def rows() -> list[dict[str, Any]]:
    """One row a split, and their mean."""
    splits = [_split(seed) for seed in range(SPLITS)]
    means = {key: mean(split[key] for split in splits) for key in splits[0] if key != "split"}
    return [*splits, {"split": "mean", **means}]


def _split(seed: int) -> dict[str, Any]:
    folder = example("heart")
    job = load_job(folder / "job.toml")
    sites: SimulatedSites = sites_of_folder(folder).model_copy(update={"holdout_seed": seed})
    files = dict(zip(sites.names, sites.files, strict=True))
    judge = Judge(job, files, seed)
    private = [trained(job, sites, judge, "private") for _ in range(NOISE_DRAWS)]
    others: list[Row] = baselines(folder / "job-without-privacy.toml", files, judge, seed)
    without_privacy, pooled, *alone = others
    return {
        "split": str(seed),
        "private": mean(row.accuracy for row in private),
        "worst_draw": min(row.accuracy for row in private),
        "without_privacy": without_privacy.accuracy,
        "pooled": pooled.accuracy,
        "best_alone": max(row.accuracy for row in alone),
        "worst_alone": min(row.accuracy for row in alone),
        "private_auc": mean(row.auc for row in private),
        "without_privacy_auc": without_privacy.auc,
    }

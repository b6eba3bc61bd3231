"""Who takes part in a simulation: parts of a pooled data set, or sites with a file each."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path

from hanse.errors import JobError
from hanse.job import Job
from hanse.simulation import SimulatedSites, write_parts
from hanse.task import load_task

from hanse_server.simulation.partition import column_of, partition, read_column

log = logging.getLogger("hanse.server")


def lay_out(
    job: Job, *, data: Path | None, partition_spec: str, count: int, folder: Path
) -> SimulatedSites:
    """Decide the sites of a simulation.

    Args:
        data: the pooled data set; not needed where ``partition_spec`` is a folder of site files.
        partition_spec: ``iid``, ``dirichlet:A``, ``shards:K``, ``column:NAME``, or a folder.
        count: of sites, where the specification leaves it open.
        folder: where the parts are written to.

    Raises:
        JobError: if the specification or the data is missing or does not fit.
    """
    if Path(partition_spec).is_dir():
        return sites_of_folder(Path(partition_spec))
    if data is None:
        raise JobError(
            f"partition {partition_spec} needs a pooled data set",
            remedy="Name one with --data, or as simulation.data in job.toml.",
        )
    if job.privacy.private and job.privacy.sampling_rate is None:
        log.warning(
            "privacy.sampling_rate is not set: a site that keeps its number of records to itself "
            "will refuse this job"
        )
    task = load_task(job.task.name, job.task.options)
    column = column_of(partition_spec)
    parts = partition(
        partition_spec,
        task.read(data).targets,
        count,
        job.seed,
        None if column is None else read_column(data, column),
    )
    names = [f"site-{number:0{len(str(len(parts)))}d}" for number in range(1, len(parts) + 1)]
    write_parts(folder / "parts.npz", parts)
    return SimulatedSites(
        names=tuple(names),
        data=data.resolve(),
        parts=(folder / "parts.npz").resolve(),
        holdout=job.simulation.holdout,
        count=not job.privacy.private or job.privacy.sampling_rate is None,
        budget=job.privacy.target_epsilon,
    )


def sites_of_folder(folder: Path) -> SimulatedSites:
    """The sites whose ``site.toml`` files are in a folder; other TOML files are passed over.

    Raises:
        JobError: if there is none.
    """
    names: dict[str, Path] = {}
    for file in sorted(folder.glob("*.toml")):
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        if {"name", "data", "budget"} <= set(content):
            names[str(content["name"])] = file.resolve()
    if not names:
        raise JobError(f"{folder} holds no site files", remedy="Name a folder of site.toml files.")
    return SimulatedSites(names=tuple(names), files=tuple(names.values()))

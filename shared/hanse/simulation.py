"""Simulated sites, described in a way that a worker process can be told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message

from hanse.config import Settings

CLIENT_APP = "hanse_client.simulation:make_app"
"""What makes the ClientApp of simulated sites from a :class:`SimulatedSites` as JSON.

By name: the server's package drives the client's app without importing it.
"""

LEDGER = "hanse.ledger"
"""Key of a record in the state of a simulated site's context, for engines whose workers may die.

Where an engine puts an empty one, the app keeps the rows of the site's ledger in it, and begins
each message with the ledger that it finds there.
"""

COHORT_APP = "hanse_client.simulation:make_cohort"
"""Likewise what makes a :data:`CohortApp`."""

CohortApp = Callable[[Sequence[tuple[Message, Context]]], Iterator[Message]]
"""Answers the messages to many sites, each with its site's context, in their order."""


class SimulatedSites(Settings):
    """Who takes part in a simulation, and with which records.

    Either parts of a pooled data set (``data`` and ``parts``), or sites with a file each.

    Attributes:
        names: of the sites.
        data: the pooled data set.
        parts: file of the record numbers of each site (:func:`write_parts`).
        holdout: fraction of each part that is kept back.
        count: whether the sites weigh by their number of records; without it all weigh the
            same, as real sites do where that number is private.
        budget: epsilon of a site that has no file to set one; None for no bound, so that a
            simulation shows what a job would spend.
        files: a ``site.toml`` for each name; their policies and budgets hold, their ledgers
            are left alone.
        holdout_seed: in place of that of the files.
        pooled: the sites' training records as one data set at one site.
        waived: train without privacy although a site's policy does not allow it; the one who
            simulates has all the records anyway.
    """

    names: tuple[str, ...]
    data: Path | None = None
    parts: Path | None = None
    holdout: float = 0.0
    count: bool = True
    budget: float | None = None
    files: tuple[Path, ...] = ()
    holdout_seed: int | None = None
    pooled: bool = False
    waived: bool = False


def write_parts(path: Path, parts: Sequence[torch.Tensor]) -> None:
    """Write the record numbers of each site, int64 of shape (n,), in the order of the sites."""
    ends = np.cumsum([len(part) for part in parts])
    records = torch.cat([part.to(torch.int64) for part in parts]).numpy()
    np.savez(path, allow_pickle=False, records=records, ends=ends)


def read_parts(path: Path, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
    """What :func:`write_parts` wrote, by the names of the sites: views of one tensor.

    Raises:
        ValueError: if there are not as many parts as names.
    """
    with np.load(path, allow_pickle=False) as written:
        records, ends = torch.from_numpy(written["records"]), written["ends"]
    parts = torch.tensor_split(records, torch.from_numpy(ends[:-1]))
    return dict(zip(names, parts, strict=True))

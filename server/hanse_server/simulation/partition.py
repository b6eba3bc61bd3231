"""Dividing one data set among simulated sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from hanse.errors import JobError
from hanse.tasks.tabular.table import read_table
from torch import Tensor

Indices = npt.NDArray[np.int64]

_DRAWS = 1000  # of a Dirichlet division, until no site is empty


def partition(
    spec: str,
    targets: Tensor,
    sites: int,
    seed: int,
    column: Sequence[str] | None = None,
) -> list[Tensor]:
    """Divide N records among sites: each record goes to exactly one, and no site is empty.

    - ``iid``: shuffled, in parts that differ by one record at most;
    - ``dirichlet:ALPHA``: each class is divided in proportions drawn from a symmetric Dirichlet
      distribution; the smaller ALPHA, the more the sites differ, in classes and in size
      (Yurochkin et al. 2019; Hsu, Qi, Brown 2019 draw likewise for sites of equal size);
    - ``shards:K``: sorted by class and cut into ``sites * K`` shards, of which each site gets K
      at random (McMahan et al. 2017);
    - ``column:NAME``: one site for each distinct value of a column, in the values' order;
      ``sites`` has no say.

    Args:
        targets: class numbers, shape (N,); ``iid`` and ``column`` take targets of any kind.
        seed: the same seed divides in the same way.
        column: the N values of the column, for ``column:NAME`` alone.

    Returns:
        For each site the indices of its records, ascending, int64.

    Raises:
        JobError: if the spec is malformed, or does not suit the records.
    """
    kind, _, argument = spec.partition(":")
    generator = np.random.default_rng(seed)
    if kind != "column" and len(targets) < sites:
        raise JobError(
            f"partition = {spec!r}: {len(targets)} records are too few for {sites} sites",
            remedy="Simulate fewer sites.",
        )
    if kind == "iid" and not argument:
        parts = np.array_split(generator.permutation(len(targets)), sites)
    elif kind == "dirichlet":
        parts = _dirichlet(_classes(spec, targets), sites, _alpha(spec, argument), generator)
    elif kind == "shards":
        parts = _shards(_classes(spec, targets), sites, _count(spec, argument), generator)
    elif kind == "column" and argument:
        parts = _by_value(spec, len(targets), column)
    else:
        raise JobError(
            f"partition = {spec!r} is none of iid, dirichlet:ALPHA, shards:K, column:NAME",
            remedy="Write, say, --partition dirichlet:0.5.",
        )
    return [torch.from_numpy(np.sort(part)) for part in parts]


def column_of(spec: str) -> str | None:
    """The column that a division by column needs; None for every other."""
    kind, _, argument = spec.partition(":")
    return argument if kind == "column" else None


def read_column(path: Path, name: str) -> list[str]:
    """The cells of a column of a CSV or Parquet file, as text, for ``column:NAME``.

    Raises:
        DataError: if the file cannot be read, lacks the column, or a cell of it is empty.
    """
    cells = read_table(path, [name])[name]
    cells.refuse(cells.empty(), "empty", remedy="Divide by a column whose cells are all filled.")
    return [str(word) for word in cells.words()]


def _dirichlet(
    classes: Indices, sites: int, alpha: float, generator: np.random.Generator
) -> list[Indices]:
    for _ in range(_DRAWS):
        parts: list[list[Indices]] = [[] for _ in range(sites)]
        for number in np.unique(classes):
            members = generator.permutation(np.flatnonzero(classes == number))
            shares = generator.dirichlet(np.full(sites, alpha))
            cuts = np.round(shares.cumsum() * len(members)).astype(np.int64)
            for site, (start, end) in enumerate(pairwise((0, *cuts))):
                parts[site].append(members[start:end])
        divided = [np.concatenate(part) for part in parts]
        if all(len(part) for part in divided):
            return divided
    raise JobError(
        f"partition = 'dirichlet:{alpha:g}': {_DRAWS} draws all left one of {sites} sites empty",
        remedy="Choose a larger ALPHA, or simulate fewer sites.",
    )


def _shards(
    classes: Indices, sites: int, count: int, generator: np.random.Generator
) -> list[Indices]:
    if len(classes) < sites * count:
        raise JobError(
            f"partition = 'shards:{count}': {len(classes)} records are too few for"
            f" {sites * count} shards",
            remedy="Choose a smaller K, or simulate fewer sites.",
        )
    shuffled = generator.permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    shards = np.array_split(by_class, sites * count)
    order = generator.permutation(sites * count).reshape(sites, count)
    return [np.concatenate([shards[shard] for shard in row]) for row in order]


def _by_value(spec: str, records: int, column: Sequence[str] | None) -> list[Indices]:
    if column is None or len(column) != records:
        held = "no column" if column is None else f"a column of {len(column)} cells"
        raise JobError(
            f"partition = {spec!r}: {records} records, but {held}",
            remedy="Divide by a column of the CSV or Parquet file that the records come from.",
        )
    _, sites = np.unique(np.asarray(column, dtype=str), return_inverse=True)
    return [np.flatnonzero(sites == site) for site in range(sites.max() + 1)]


def _classes(spec: str, targets: Tensor) -> Indices:
    if targets.dim() != 1 or targets.is_floating_point():
        raise JobError(
            f"partition = {spec!r} divides by class, and the task predicts a number",
            remedy="Use iid or column:NAME.",
        )
    classes: Indices = targets.cpu().numpy().astype(np.int64)
    return classes


def _alpha(spec: str, argument: str) -> float:
    try:
        alpha = float(argument)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise JobError(
            f"partition = {spec!r}: ALPHA is not a number above 0",
            remedy="Write, say, --partition dirichlet:0.5.",
        )
    return alpha


def _count(spec: str, argument: str) -> int:
    if not argument.isdecimal() or int(argument) == 0:
        raise JobError(
            f"partition = {spec!r}: K is not a whole number above 0",
            remedy="Write, say, --partition shards:2.",
        )
    return int(argument)

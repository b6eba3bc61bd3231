"""A site's records: where they are, what is kept back to judge models by, how they are known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt

from hanse.config import Settings
from hanse.errors import DataError
from hanse.task import AnyTask, Examples


class Data(Settings):
    """``[data]`` of a site: the private records, and those of them kept back.

    Give ``test`` a file of its own, or ``holdout`` a fraction of ``train`` that
    ``holdout_seed`` picks. Held-out records never take part in training.
    """

    train: Path
    test: Path | None = None
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    holdout_seed: NonNegativeInt = 0

    def below(self, folder: Path) -> Data:
        """The same with paths taken from ``folder``."""
        test = None if self.test is None else folder / self.test
        return self.model_copy(update={"train": folder / self.train, "test": test})


@dataclass(frozen=True)
class Records:
    """The records of a site, as a task reads them.

    Attributes:
        train: what training draws from.
        held_out: what models are judged by; None if the site keeps none back.
        fingerprint: of the bytes that ``train`` comes from, 64 hex digits. The ledger knows the
            data by it, whatever the task, its options, the paths and the names, so that reading
            the same file in another way gives no fresh budget.
    """

    train: Examples
    held_out: Examples | None
    fingerprint: str


def read_records(task: AnyTask, data: Data) -> Records:
    """Read a site's data as ``task`` does.

    Raises:
        DataError: if it cannot be read, or nothing is left to train on.
    """
    train = task.read(data.train)
    if data.test is None:
        train, held_out = hold_out(train, data.holdout, data.holdout_seed)
    else:
        held_out = task.read(data.test)
    if len(train) == 0:
        raise DataError(f"{data.train.name} holds no records to train on")
    return Records(train, held_out, fingerprint(data.train))


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples | None]:
    """Split off ``fraction`` of the records, chosen by ``seed`` alone: (the rest, held out)."""
    count = round(len(examples) * fraction)
    if count == 0:
        return examples, None
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples.take(order[count:].sort().values), examples.take(order[:count].sort().values)


def concatenate(parts: list[Examples]) -> Examples:
    """All records of all parts, in their order."""
    inputs = zip(*(part.inputs for part in parts), strict=True)
    return Examples(
        tuple(torch.cat(tensors) for tensors in inputs),
        torch.cat([part.targets for part in parts]),
    )


def fingerprint(source: Path) -> str:
    """SHA-256 over the bytes of a file, or of all files of a folder by their names.

    Raises:
        DataError: if there is nothing there.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist", remedy="Correct [data] in site.toml.")
    digest = hashlib.sha256()
    folder = source.is_dir()
    files = sorted(path for path in source.rglob("*") if path.is_file()) if folder else [source]
    for file in files:
        if folder:
            digest.update(str(file.relative_to(source)).encode() + b"\0")
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()

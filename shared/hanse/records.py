"""A site's records: where they are, what is kept back to judge models by, how they are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from hanse.config import Settings
from hanse.errors import DataError
from hanse.task import AnyTask, Examples


class Data(Settings):
    """``[data]`` of a site: the private records, and those of them kept back.

    Give ``test`` a file of its own, or ``holdout`` a fraction of ``train``, in expectation, that
    ``holdout_seed`` picks by their content as the task reads it. Held-out records never take
    part in training; another task, or other options, may read and so pick otherwise.
    """

    train: Path
    test: Path | None = None
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    holdout_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

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
        held_out_fingerprint: likewise of ``held_out``; None if it comes from the same bytes.
    """

    train: Examples
    held_out: Examples | None
    fingerprint: str
    held_out_fingerprint: str | None = None

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of all the bytes that the records come from."""
        if self.held_out_fingerprint is None:
            return (self.fingerprint,)
        return self.fingerprint, self.held_out_fingerprint


def read_records(task: AnyTask, data: Data) -> Records:
    """Read a site's data as ``task`` does, once: they stay what they are if the files change.

    Raises:
        DataError: if it cannot be read, changes meanwhile, or nothing is left to train on.
    """
    known_as = fingerprints(data)
    train = task.read(data.train)
    if data.test is None:
        train, held_out = hold_out(train, data.holdout, data.holdout_seed)
    else:
        held_out = task.read(data.test)
    if len(train) == 0:
        raise DataError(f"{data.train.name} holds no records to train on")
    if fingerprints(data) != known_as:
        # Records of one version would be charged to the account of another.
        raise DataError(
            f"{data.train.name} was changed while it was read",
            remedy="Put a new version in place by renaming it, and while the client is stopped.",
        )
    return Records(train, held_out, *known_as)


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples | None]:
    """Split off about ``fraction`` of the records: (the rest, held out), each in its order.

    A record's own content and ``seed`` decide on which side it is, by a keyed hash. So adding or
    removing a record moves no other one, and a data set with it and one without it differ in it
    alone after the split, too, as the unit of privacy has it. Equal records stay together.
    """
    chosen = held_back(examples, fraction, seed)
    if not bool(chosen.any()):
        return examples, None
    return examples.take((~chosen).nonzero().flatten()), examples.take(chosen.nonzero().flatten())


def held_back(examples: Examples, fraction: float, seed: int) -> torch.Tensor:
    """Which records :func:`hold_out` takes, as booleans of shape (N,)."""
    if fraction == 0.0:
        return torch.zeros(len(examples), dtype=torch.bool)
    key = seed.to_bytes(8, "big")
    draws = [_draw(key, record) for record in _contents(examples)]
    return torch.tensor(draws, dtype=torch.float64) < fraction


def _contents(examples: Examples) -> Iterator[bytes]:
    """The bytes of each record, inputs and target."""
    if len(examples) == 0:
        return
    rows = [
        tensor.reshape(len(tensor), -1).contiguous().view(torch.uint8).numpy()
        for tensor in (*examples.inputs, examples.targets)
    ]
    yield from (b"".join(row[number].tobytes() for row in rows) for number in range(len(examples)))


def _draw(key: bytes, record: bytes) -> float:
    """A number in [0, 1) that nobody can tell from a random one without the record."""
    digest = hashlib.blake2b(record, key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def concatenate(parts: list[Examples]) -> Examples:
    """All records of all parts, in their order."""
    inputs = zip(*(part.inputs for part in parts), strict=True)
    return Examples(
        tuple(torch.cat(tensors) for tensors in inputs),
        torch.cat([part.targets for part in parts]),
    )


def fingerprints(data: Data) -> tuple[str, ...]:
    """The fingerprint of the training data, and that of the held-out file if it is another."""
    known_as = fingerprint(data.train)
    held_out = known_as if data.test is None else fingerprint(data.test)
    return (known_as,) if held_out == known_as else (known_as, held_out)


def fingerprint(source: Path) -> str:
    """SHA-256 over the contents of a file, or of all files of a folder, whatever their names.

    A folder's is that of its contents in an order of their own: one file has the same with and
    without a folder around it, and a folder the same however its files are named and arranged.

    Raises:
        DataError: if there is nothing there.
    """
    files = [source] if source.is_file() else [each for each in source.rglob("*") if each.is_file()]
    if not files:
        missing = "holds no file" if source.exists() else "does not exist"
        raise DataError(f"{source} {missing}", remedy="Correct [data] in site.toml.")
    return hashlib.sha256(b"".join(sorted(map(_digest, files)))).hexdigest()


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()

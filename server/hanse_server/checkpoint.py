"""Checkpoints: after every round, all that the next one needs, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
from flwr.app import ArrayRecord
from hanse.durable import replace_file
from hanse.errors import WorkspaceError
from hanse.flower import read_tensors, to_record
from hanse.parsing import parse_json
from pydantic import TypeAdapter
from pydantic_core import to_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from hanse_server.durable import new_folder, write_file

KEEP = 2
"""Checkpoints kept: the newest, and the one before it."""

STATEMENT = "hanse.statement"
"""Key of the statement, as JSON, in a model's safetensors metadata."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        round: the last round that ended.
        missed: rounds in a row that missed the quorum.
        best: the best value of the metric that the job selects by, None before the first.
        best_round: its round.
    """

    round: int = 0
    missed: int = 0
    best: float | None = None
    best_round: int = 0


_PROGRESS = TypeAdapter(Progress)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run between two rounds."""

    progress: Progress
    arrays: ArrayRecord
    strategy: Mapping[str, Tensor] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint below ``folder``, then remove all but the newest few."""
    tensors = read_tensors(checkpoint.arrays)
    name = f"round-{checkpoint.progress.round:05d}"
    with new_folder(folder / name) as new:
        save_tensors(tensors, new / "model.safetensors")
        save_tensors(checkpoint.strategy, new / "strategy.safetensors")
        # safetensors sorts names; strategies of Flower go by the order of the arrays.
        state = {"progress": asdict(checkpoint.progress), "names": list(tensors)}
        (new / "progress.json").write_text(json.dumps(state), encoding="utf-8")
    for old in _rounds(folder)[:-KEEP]:
        shutil.rmtree(old)


def last_round(folder: Path) -> int:
    """The round of the newest checkpoint below ``folder``, 0 if there is none."""
    return max(rounds(folder), default=0)


def rounds(folder: Path) -> list[int]:
    """The rounds of which there are checkpoints below ``folder``, the oldest first."""
    return [int(path.name.removeprefix("round-")) for path in _rounds(folder)]


def load_round(folder: Path, number: int) -> Mapping[str, Tensor] | None:
    """The model of a round's checkpoint, None if there is none any more.

    Raises:
        WorkspaceError: if it is damaged.
    """
    path = folder / f"round-{number:05d}" / "model.safetensors"
    return load_model(path) if path.exists() else None


def load_last(folder: Path) -> Checkpoint | None:
    """The newest checkpoint below ``folder``, None if there is none.

    Raises:
        WorkspaceError: if it is damaged.
    """
    found = _rounds(folder)
    if not found:
        return None
    last = found[-1]
    try:
        state: dict[str, Any] = parse_json((last / "progress.json").read_bytes())
        model = load_file(last / "model.safetensors")
        arrays = to_record({name: model[name] for name in state["names"]})
        return Checkpoint(
            progress=_PROGRESS.validate_python(state["progress"]),
            arrays=arrays,
            strategy=load_file(last / "strategy.safetensors"),
        )
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as damaged:
        raise WorkspaceError(
            f"{last} is damaged: {damaged}",
            remedy="Begin a new run on its last model (initial_weights = models/last.safetensors "
            "in the job, another --workspace): sites train no round of a run a second time.",
        ) from damaged


def save_model(path: Path, arrays: ArrayRecord, statement: Mapping[str, Any]) -> None:
    """Write a model for use, with the statement of how it came about in its metadata and beside it.

    So a model that is handed on alone still says what privacy it kept.
    """
    temporary, told = path.with_name(f".{path.name}"), partial(to_json, inf_nan_mode="constants")
    save_tensors(read_tensors(arrays), temporary, {STATEMENT: told(statement).decode()})
    replace_file(path, temporary)
    write_file(path.with_suffix(".json"), told(statement, indent=2))


def load_model(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file.

    Raises:
        WorkspaceError: if it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as unreadable:
        raise WorkspaceError(
            f"{path} cannot be read as safetensors: {unreadable}", remedy="Name a model file."
        ) from unreadable


def load_stated(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a model that :func:`save_model` wrote, and its statement.

    Raises:
        WorkspaceError: if it is damaged, or says nothing of how it came about.
    """
    model = load_model(path)
    with safetensors.safe_open(path, "pt") as opened:
        text = (opened.metadata() or {}).get(STATEMENT, "")
    try:
        return model, dict(json.loads(text))
    except (ValueError, TypeError) as damaged:
        raise WorkspaceError(f"{path} carries no statement of how it came about") from damaged


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors as safetensors; shared and strided memory is copied first."""
    owned = {
        name: tensor if _is_alone(tensor) else tensor.contiguous().clone()
        for name, tensor in tensors.items()
    }
    save_file(owned, path, metadata)


def _is_alone(tensor: Tensor) -> bool:
    """Whether nothing else lies in its memory."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


def _rounds(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())

"""A task: what a data scientist writes, and what a site's administrator allows by name.

A task is a small class with a model, a way to read a site's data, a loss for each record, and
metrics. It is chosen in ``job.toml`` by name (the tasks that ship with Hanse) or by
``package.module:Class`` (a data scientist's own package, installed at the site by its
administrator: no code travels).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from hanse.config import Settings, validate
from hanse.errors import DataError, TaskError


@dataclass(frozen=True)
class Examples:
    """Records as tensors: ``inputs`` are the model's arguments, all of the same first length.

    Attributes:
        inputs: one tensor an argument of the model, each of shape (N, ...).
        targets: shape (N, ...).
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __post_init__(self) -> None:
        count = len(self)
        if any(tensor.shape[0] != count for tensor in self.inputs):
            lengths = sorted({len(tensor) for tensor in (*self.inputs, self.targets)})
            raise DataError(f"inputs and targets differ in length: {lengths}")

    def __len__(self) -> int:
        return self.targets.shape[0]

    def part(self, start: int, stop: int) -> Examples:
        """A view of the records from ``start`` up to ``stop``, or to their end."""
        if start == 0 and stop >= len(self):
            return self
        return Examples(tuple(each[start:stop] for each in self.inputs), self.targets[start:stop])

    def take(self, indices: Tensor) -> Examples:
        """The records at ``indices``, shape (k,), in that order."""
        inputs = tuple(tensor.index_select(0, indices) for tensor in self.inputs)
        return Examples(inputs, self.targets.index_select(0, indices))

    def to(self, device: torch.device) -> Examples:
        """The same records on ``device``."""
        return Examples(tuple(tensor.to(device) for tensor in self.inputs), self.targets.to(device))


RecordValues = Callable[[Tensor, Tensor], Tensor]
"""Outputs (N, ...) and targets (N, ...) to a value of each record, (N,)."""


@dataclass(frozen=True, kw_only=True)
class RecordMetric:
    """A metric that is the mean of a bounded value of each record, so that a site can noise it.

    Attributes:
        values: of record i from ``outputs[i]`` and ``targets[i]`` alone, in [0, bound]; what
            lies outside is clipped, and NaN counts as the bound.
        bound: a declared constant, no statistic of the data.
    """

    values: RecordValues
    bound: float = 1.0


class NoOptions(Settings):
    """The options of a task that has none."""


O_co = TypeVar("O_co", bound=Settings, covariant=True)


class Task(ABC, Generic[O_co]):
    """Base of all tasks.

    Args:
        options: ``[task.options]`` of the job, validated into :attr:`Options`.
    """

    Options: ClassVar[type[Settings]] = NoOptions

    def __init__(self, options: O_co) -> None:
        self.options = options

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model. Its initial weights come from torch's global generator."""

    @abstractmethod
    def read(self, source: Path) -> Examples:
        """Read a file or folder of a site into tensors.

        Only what the options declare may shape the result, never statistics of the data: what
        is computed from private records would travel inside the model's inputs unaccounted.

        Raises:
            DataError: naming file, column and row, without values.
        """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each record, shape (B,); cross-entropy unless the task says otherwise.

        Record i's loss may depend on ``outputs[i]`` and ``targets[i]`` alone; Hanse checks this
        before private training.
        """
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    @abstractmethod
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics over all N records of an evaluation, besides the loss; finite numbers."""

    def record_metrics(self) -> Mapping[str, RecordMetric]:
        """Those of :meth:`metrics`, by name, that are means of bounded values of records.

        A site lets these out with noise under its privacy budget, and any other metric only as
        it is. They are declared apart from their values, so that a site can charge for what it
        will release before a record is looked at. None by default.
        """
        return {}

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random augmentation of a batch, each record on its own; none by default."""
        return inputs


AnyTask = Task[Settings]


def task_names() -> Mapping[str, str]:
    """The installed tasks: name -> ``module:Class``, from the entry points ``hanse.tasks``."""
    return {entry.name: entry.value for entry in sorted(entry_points(group="hanse.tasks"))}


def load_task(name: str, options: Mapping[str, Any]) -> AnyTask:
    """The task called ``name`` (installed, or ``package.module:Class``) with its options.

    Raises:
        TaskError: if there is no such task, or its options do not validate.
    """
    kind = _task_type(name)
    return kind(validate(dict(options), kind.Options, TaskError, where="task.options"))


def task_digest(name: str) -> str:
    """SHA-256 of the sources that make the task, as 64 hex digits.

    What an administrator pins in ``site.toml``, so that a changed task is a new decision. It
    covers every Python file of the package that the task's module is in, as what a task does is
    decided by its helpers too; a module outside any package counts alone.
    """
    digest = hashlib.sha256(task_names().get(name, name).encode())
    for file, known_as in _sources(name):
        digest.update(f"{known_as}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _sources(name: str) -> list[tuple[Path, str]]:
    kind = _task_type(name)
    reference, _, _ = task_names().get(name, name).partition(":")
    package = importlib.import_module(reference.rpartition(".")[0] or reference)
    folders = [Path(folder) for folder in getattr(package, "__path__", ())]
    if not folders:
        return [(Path(inspect.getfile(kind)), "")]
    return [
        (file, file.relative_to(folder).as_posix())
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
    ]


def _task_type(name: str) -> type[AnyTask]:
    reference = task_names().get(name, name)
    module_name, _, class_name = reference.partition(":")
    if not class_name:
        raise TaskError(
            f"task.name = {name!r}: no such task (installed: {', '.join(task_names())})",
            remedy="Name one of these, or a class of your own as `package.module:Class`.",
        )
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as missing:
        raise TaskError(
            f"task.name = {name!r}: cannot be loaded: {missing}",
            remedy=f"Install the package that holds {module_name} on this machine.",
        ) from missing
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise TaskError(f"task.name = {name!r}: {class_name} is not a subclass of hanse.task.Task")
    return kind

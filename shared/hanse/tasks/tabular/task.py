"""The task ``tabular``: rows of a table, encoded from what the job declares about its columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hanse.config import Settings
from hanse.task import Examples, RecordMetric, Task
from hanse.tasks.perceptron import Activation, perceptron
from hanse.tasks.scores import absolute_errors, classification, correct, regression
from hanse.tasks.tabular.columns import Column
from hanse.tasks.tabular.table import read_table
from hanse.tasks.tabular.target import Target


class TabularModel(Settings):
    """``[task.options.model]``: a linear model, or a perceptron with ``hidden`` layers."""

    kind: Literal["linear", "mlp"] = "linear"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(max_length=64)] = ()
    activation: Activation = "tanh"

    @model_validator(mode="after")
    def _hidden_of_mlp(self) -> TabularModel:
        if (self.kind == "mlp") != bool(self.hidden):
            raise ValueError('kind = "mlp" needs hidden = [...]; kind = "linear" takes none')
        return self


class TabularOptions(Settings):
    """``[task.options]``: the columns to learn from, the one to predict, and the model."""

    columns: Annotated[dict[str, Column], Field(min_length=1)]
    target: Target
    model: TabularModel = TabularModel()

    @model_validator(mode="after")
    def _target_apart(self) -> TabularOptions:
        if self.target.column in self.columns:
            raise ValueError(f"{self.target.column} is the target, and cannot be an input too")
        return self


class Tabular(Task[TabularOptions]):
    """Classification (cross-entropy) or regression (squared error) of the rows of a table."""

    Options: ClassVar[type[Settings]] = TabularOptions

    def model(self) -> nn.Module:
        """The declared model on (B, features) float32; a linear one starts from zero."""
        features = sum(column.width for column in self.options.columns.values())
        wanted, outputs = self.options.model, self.options.target.outputs
        if wanted.kind == "mlp":
            return perceptron((features, *wanted.hidden, outputs), wanted.activation)
        linear = nn.Linear(features, outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear

    def read(self, source: Path) -> Examples:
        """Read a CSV or Parquet file; columns that the job does not declare are ignored.

        Raises:
            DataError: naming file, column and row, without values.
        """
        columns, target = self.options.columns, self.options.target
        table = read_table(source, (*columns, target.column))
        encoded = [column.encode(table[name]) for name, column in columns.items()]
        inputs = torch.from_numpy(np.concatenate(encoded, axis=1)).float()
        return Examples((inputs,), target.encode(table[target.column]))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, or the squared error of the scaled target, of each record: (B,)."""
        if self.options.target.is_regression:
            return (outputs - targets).square().mean(dim=1)
        return super().loss(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """``accuracy`` and ``auc`` (two classes), or ``mae``, ``rmse`` and ``r2``."""
        target = self.options.target
        if target.is_regression:
            return regression(target.in_units(outputs), target.in_units(targets))
        return classification(outputs, targets)

    def record_metrics(self) -> Mapping[str, RecordMetric]:
        """``accuracy``, or ``mae`` of errors that count up to the declared range of the target."""
        target = self.options.target
        if not target.is_regression:
            return {"accuracy": RecordMetric(values=correct)}

        def errors(outputs: Tensor, targets: Tensor) -> Tensor:
            found = absolute_errors(target.in_units(outputs), target.in_units(targets))
            return found.clamp(max=target.span)

        return {"mae": RecordMetric(values=errors, bound=target.span)}

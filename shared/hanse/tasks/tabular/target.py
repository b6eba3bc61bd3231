"""What is to be predicted, as a job declares it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from hanse.config import Settings
from hanse.tasks.tabular.columns import match_values
from hanse.tasks.tabular.table import Cells


class Target(Settings):
    """The column to predict: exactly one of a class, a threshold, or a range.

    - ``classes``: the declared values, in the order of the model's outputs;
    - ``positive_above``: two classes, 1 for numbers above it and 0 for others;
    - ``low`` and ``high``: regression; values are clipped to the range and scaled to [-1, 1].
    """

    column: str
    classes: Annotated[tuple[str, ...] | tuple[float, ...], Field(min_length=2)] | None = None
    positive_above: float | None = None
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Target:
        ranged = self.low is not None or self.high is not None
        kinds = (self.classes is not None, self.positive_above is not None, ranged)
        if sum(kinds) != 1:
            raise ValueError("give one of classes, positive_above, or low and high")
        if ranged and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError("a regression needs low and high, with low below high")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a class is declared twice")
        return self

    @property
    def is_regression(self) -> bool:
        """Whether a number is predicted, not a class."""
        return self.low is not None

    @property
    def outputs(self) -> int:
        """How many outputs the model has: one a class, or one for a regression."""
        if self.is_regression:
            return 1
        return 2 if self.classes is None else len(self.classes)

    def encode(self, cells: Cells) -> Tensor:
        """Class numbers, int64 of shape (N,); for a regression float32 of shape (N, 1).

        Raises:
            DataError: if a cell is empty, no number where one is declared, or of no class.
        """
        if self.classes is not None:
            return self._class_numbers(cells, self.classes)
        numbers = cells.numbers()
        cells.refuse_empty(np.isnan(numbers))
        if self.positive_above is not None:
            return torch.from_numpy(numbers > self.positive_above).long()
        centre, half = self._range()
        scaled = (np.clip(numbers, centre - half, centre + half) - centre) / half
        return torch.from_numpy(scaled).float().unsqueeze(1)

    def in_units(self, scaled: Tensor) -> Tensor:
        """Scaled numbers of a regression in the unit of the column, same shape, float64."""
        centre, half = self._range()
        return scaled.double() * half + centre

    @property
    def span(self) -> float:
        """From the lowest to the highest number of a regression, in the unit of the column."""
        _, half = self._range()
        return 2 * half

    def _class_numbers(self, cells: Cells, classes: tuple[str, ...] | tuple[float, ...]) -> Tensor:
        matches, empty = match_values(cells, classes)
        cells.refuse_empty(empty)
        known = np.asarray(matches.any(axis=1))
        cells.refuse(
            ~known,
            "none of the declared classes",
            remedy="Mend the cells, or declare the class in task.options.target.classes.",
        )
        return torch.from_numpy(matches.argmax(axis=1))

    def _range(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ValueError(f"{self.column} is declared as a class and has no range")
        return (self.low + self.high) / 2, (self.high - self.low) / 2

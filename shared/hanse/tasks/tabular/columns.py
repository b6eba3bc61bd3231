"""Columns as a job declares them, and their encoding as model inputs.

Every bound and every category comes from the declaration. Nothing is learnt from the records,
so that encoding them costs no privacy and is the same at every site.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from hanse.config import Settings
from hanse.tasks.tabular.table import Cells, Floats, Mask

Missing = Literal["refuse", "flag"]
"""What an empty cell means: an error, or 0 with a 1 in a column of its own beside it."""


class NumberColumn(Settings):
    """A number, clipped to [low, high] and scaled to [-1, 1].

    With ``scale = "log"`` the position within the range is logarithmic, for amounts that span
    orders of magnitude: ``log(1 + x - low) / log(1 + high - low)``, scaled to [-1, 1].
    ``missing_values`` are numbers that stand for an empty cell.
    """

    type: Literal["number"]
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    missing: Missing = "refuse"
    missing_values: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _has_width(self) -> NumberColumn:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        return self

    @property
    def width(self) -> int:
        """How many model inputs the column becomes."""
        return 1 + (self.missing == "flag")

    def encode(self, cells: Cells) -> Floats:
        """The column as model inputs, shape (N, width).

        Raises:
            DataError: if a cell is no number, infinite, or empty against the declaration.
        """
        numbers = cells.numbers()
        empty = np.isnan(numbers) | np.isin(numbers, self.missing_values)
        return _with_flag(self._scaled(numbers), empty, self.missing, cells)

    def _scaled(self, numbers: Floats) -> Floats:
        offset = np.clip(numbers, self.low, self.high) - self.low
        span = self.high - self.low
        share = np.log1p(offset) / np.log1p(span) if self.scale == "log" else offset / span
        scaled: Floats = 2 * share - 1
        return scaled


class BooleanColumn(Settings):
    """True (true, yes, t, y, 1) as 1 and false (false, no, f, n, 0) as -1."""

    type: Literal["boolean"]
    missing: Missing = "refuse"

    @property
    def width(self) -> int:
        """How many model inputs the column becomes."""
        return 1 + (self.missing == "flag")

    def encode(self, cells: Cells) -> Floats:
        """The column as model inputs, shape (N, width).

        Raises:
            DataError: if a cell is neither true nor false, or empty against the declaration.
        """
        words = np.char.lower(cells.words().astype(str))
        true, false = np.isin(words, _TRUE), np.isin(words, _FALSE)
        empty = words == ""
        cells.refuse(~(true | false | empty), "neither true nor false")
        return _with_flag(true.astype(np.float64) - false, empty, self.missing, cells)


class CategoryColumn(Settings):
    """One of the declared values, as one input each, 0 or 1.

    Text is compared without surrounding blanks; declared numbers are compared as numbers. With
    ``missing = "flag"`` or ``unknown = "flag"`` one more input is 1 for cells that are empty,
    or hold none of the declared values.
    """

    type: Literal["category"]
    values: Annotated[tuple[str, ...] | tuple[float, ...], Field(min_length=1)]
    missing: Missing = "refuse"
    unknown: Missing = "refuse"

    @model_validator(mode="after")
    def _distinct(self) -> CategoryColumn:
        if len(set(self.values)) != len(self.values):
            raise ValueError("a value is declared twice")
        return self

    @property
    def width(self) -> int:
        """How many model inputs the column becomes."""
        return len(self.values) + ("flag" in (self.missing, self.unknown))

    def encode(self, cells: Cells) -> Floats:
        """The column as model inputs, shape (N, width).

        Raises:
            DataError: if a cell holds no declared value, or is empty, against the declaration.
        """
        matches, empty = match_values(cells, self.values)
        if self.missing == "refuse":
            cells.refuse_empty(empty)
        other = ~np.asarray(matches.any(axis=1))
        if self.unknown == "refuse":
            cells.refuse(
                other & ~empty,
                "none of the declared values",
                remedy=f"Mend the cells, or declare the values of {cells.column} in task.options.",
            )
        inputs = np.column_stack([matches, other]).astype(np.float64)
        return inputs[:, : self.width]


Column = Annotated[NumberColumn | BooleanColumn | CategoryColumn, Field(discriminator="type")]

_TRUE = ("true", "yes", "t", "y", "1", "1.0")
_FALSE = ("false", "no", "f", "n", "0", "0.0")


def match_values(cells: Cells, values: tuple[str, ...] | tuple[float, ...]) -> tuple[Mask, Mask]:
    """Which cell holds which of the K ``values``, shape (N, K), and which is empty, shape (N,)."""
    if isinstance(values[0], str):
        held = cells.words()
        return held[:, None] == np.array(values, dtype=object), held == ""
    numbers = cells.numbers()
    return numbers[:, None] == np.array(values, dtype=np.float64), np.isnan(numbers)


def _with_flag(inputs: Floats, empty: Mask, missing: Missing, cells: Cells) -> Floats:
    if missing == "refuse":
        cells.refuse_empty(empty)
        return inputs[:, None]
    return np.column_stack([np.where(empty, 0.0, inputs), empty])

"""Reading a CSV or Parquet file, and telling what is wrong with it without telling a value."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hanse.errors import DataError, MissingExtraError, NonFiniteDataError

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_PARQUET = (".parquet", ".parquet.brotli", ".parquet.gz", ".parquet.snappy", ".parquet.zstd")
_CSV = (".csv", ".csv.gz")


@dataclass(frozen=True)
class Cells:
    """One column of a site's file.

    Its errors name the file, the column, how many cells are concerned and the first data row
    (from 1), never a value: values are private.
    """

    file: str
    column: str
    values: pd.Series

    def empty(self) -> Mask:
        """Where a cell holds nothing (or NaN), shape (N,)."""
        return self.values.isna().to_numpy(dtype=bool)

    def numbers(self) -> Floats:
        """The cells as numbers, NaN where empty, shape (N,).

        Raises:
            DataError: if a cell is not a number.
            NonFiniteDataError: if a cell is infinite.
        """
        import pandas as pd

        if pd.api.types.is_datetime64_any_dtype(self.values.dtype):
            raise DataError(f"{self.file}: column {self.column}: holds dates, not numbers")
        parsed = pd.to_numeric(self.values, errors="coerce")
        numbers = parsed.to_numpy(dtype=np.float64, na_value=np.nan)
        self.refuse(np.isnan(numbers) & ~self.empty(), "not numbers")
        self.refuse(np.isinf(numbers), "infinite", NonFiniteDataError)
        return numbers

    def words(self) -> npt.NDArray[np.object_]:
        """The cells as text without surrounding blanks, empty text where empty, shape (N,)."""
        text = self.values.astype(object).where(~self.values.isna(), "")
        return text.astype(str).str.strip().to_numpy(dtype=object)

    def refuse(
        self,
        where: Mask,
        what: str,
        error: type[DataError] = DataError,
        remedy: str | None = None,
    ) -> None:
        """Raise ``error`` if any cell is marked in ``where``, shape (N,)."""
        count = int(where.sum())
        if count:
            raise error(
                f"{self.file}: column {self.column}: {count} of {len(where)} cells are {what}"
                f" (first: data row {int(where.argmax()) + 1})",
                remedy=remedy,
            )

    def refuse_empty(self, where: Mask) -> None:
        """Raise a NonFiniteDataError if any cell is marked as empty, shape (N,)."""
        self.refuse(
            where,
            "empty or NaN",
            NonFiniteDataError,
            f'Fill them in, or declare missing = "flag" for {self.column} in task.options.',
        )


def read_table(path: Path, columns: Sequence[str]) -> dict[str, Cells]:
    """Read the named columns of a CSV (UTF-8, with a header line) or Parquet file.

    Cells of a CSV stay text, so that what is no number is found and counted by its reader.

    Raises:
        DataError: if the file cannot be read, holds no rows, or lacks a column.
        MissingExtraError: if pandas or pyarrow is not installed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", remedy="Name an existing CSV or Parquet file.")
    frame = _read_frame(path, set(columns))
    _require(path, columns, frame)
    if frame.empty:
        raise DataError(f"{path.name}: holds no rows")
    return {name: Cells(path.name, name, frame[name]) for name in columns}


def _read_frame(path: Path, wanted: Collection[str]) -> pd.DataFrame:
    try:
        import pandas as pd
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as missing:
        raise MissingExtraError(
            f"{path.name}: reading it needs the package {missing.name}",
            remedy='Install it with `pip install "hanse[client]"`.',
        ) from missing
    name = path.name.lower()
    try:
        if name.endswith(_PARQUET):
            present = [column for column in parquet.read_schema(path).names if column in wanted]
            table = parquet.read_table(path, columns=present)
            table.validate(full=True)  # text that is none would be found cell by cell, later
            frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
            return frame
        if name.endswith(_CSV):
            return _without_shift(path, pd.read_csv(path, dtype=str, encoding="utf-8-sig"))
    except UnicodeDecodeError as foreign:
        raise DataError(f"{path.name}: not UTF-8 text") from foreign
    except pd.errors.EmptyDataError as nothing:
        raise DataError(f"{path.name}: holds no columns") from nothing
    except pd.errors.ParserError as ragged:  # its text has line numbers and counts, no values
        raise DataError(f"{path.name}: {str(ragged).strip()}") from ragged
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as malformed:
        raise DataError(
            f"{path.name}: cannot be read as a table ({type(malformed).__name__})",
            remedy="Check that it is a CSV or Parquet file, whole and readable.",
        ) from malformed
    raise DataError(
        f"{path.name}: neither CSV nor Parquet",
        remedy=f"Name it with one of the endings {', '.join((*_CSV, _PARQUET[0]))}.",
    )


def _without_shift(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    # Rows one field longer than the header make pandas take the first column as row names,
    # which would shift every column by one in silence.
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{path.name}: its rows have more fields than its header line")
    return frame


def _require(path: Path, columns: Sequence[str], frame: pd.DataFrame) -> None:
    present = [str(name) for name in frame.columns]
    absent = [name for name in columns if name not in present]
    if not absent:
        return
    close = {name: get_close_matches(name, present, n=1) for name in absent}
    told = [f"{name} (is it {near[0]}?)" if near else name for name, near in close.items()]
    raise DataError(
        f"{path.name}: lacks {'column' if len(absent) == 1 else 'columns'} {', '.join(told)}",
        remedy="Rename the file's columns to those that the job's task.options declare.",
    )

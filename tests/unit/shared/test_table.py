"""Reading CSV and Parquet: what is wrong is told by file, column and row, never by value."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hanse.errors import DataError, NonFiniteDataError
from hanse.tasks.tabular.table import read_table
from pyarrow import parquet

SECRET = "4711"


def write(folder: Path, text: str, name: str = "ward.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_parquet_give_the_same_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": [1.0, np.nan, 3.5], "name": ["a", "b", "c"]})
    frame.to_csv(tmp_path / "ward.csv", index=False)
    frame.to_csv(tmp_path / "ward.csv.gz", index=False)
    frame.to_parquet(tmp_path / "ward.parquet")
    for name in ("ward.csv", "ward.csv.gz", "ward.parquet"):
        cells = read_table(tmp_path / name, ["age"])["age"]
        np.testing.assert_array_equal(cells.numbers(), [1.0, np.nan, 3.5])
        np.testing.assert_array_equal(cells.empty(), [False, True, False])


@pytest.mark.parametrize("dtype", ["int64", "Int64", "float32", "bool", "category", "string"])
def test_parquet_numbers_of_any_type(tmp_path: Path, dtype: str) -> None:
    values = ["1", "0"] if dtype in ("category", "string") else [1, 0]
    pd.DataFrame({"x": pd.Series(values, dtype=pd.api.types.pandas_dtype(dtype))}).to_parquet(
        tmp_path / "t.parquet"
    )
    cells = read_table(tmp_path / "t.parquet", ["x"])["x"]
    np.testing.assert_array_equal(cells.numbers(), [1.0, 0.0])


def test_words_are_stripped_and_empty_where_missing(tmp_path: Path) -> None:
    cells = read_table(write(tmp_path, "x,y\n  red ,1\n,2\n"), ["x"])["x"]
    assert list(cells.words()) == ["red", ""]


def test_unparsable_numbers_are_counted_and_placed_without_values(tmp_path: Path) -> None:
    path = write(tmp_path, f"x\n1\nno{SECRET}\nnor{SECRET}\n")
    with pytest.raises(DataError, match=r"ward\.csv: column x: 2 of 3 .*not numbers.*row 2") as e:
        read_table(path, ["x"])["x"].numbers()
    assert SECRET not in str(e.value)


def test_infinite_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteDataError, match="column x: 1 of 2 cells are infinite"):
        read_table(write(tmp_path, "x\n1\ninf\n"), ["x"])["x"].numbers()


def test_dates_are_no_numbers(tmp_path: Path) -> None:
    pd.DataFrame({"x": pd.to_datetime(["2020-01-01"])}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="dates"):
        read_table(tmp_path / "t.parquet", ["x"])["x"].numbers()


def test_a_lacking_column_is_named_with_its_near_miss(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks columns ages \(is it age\?\), weight"):
        read_table(write(tmp_path, "age,sex\n1,2\n"), ["ages", "weight"])


def test_rows_longer_than_the_header_do_not_shift_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more fields than its header"):
        read_table(write(tmp_path, "a,b\n1,2,3\n4,5,6\n"), ["a", "b"])


def test_a_ragged_row_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3"):
        read_table(write(tmp_path, f"a,b\n1,2\n4,5,{SECRET}\n"), ["a"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "no columns"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a\n\xff\xfe\n", "not UTF-8"),
        ("t.parquet", b"PAR1 and then nothing", "cannot be read as a table"),
        ("t.csv.gz", b"no gzip", "cannot be read as a table"),
        ("t.xlsx", b"PK", "neither CSV nor Parquet"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name, ["a"])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "absent.csv", ["a"])


@pytest.mark.parametrize("keep", [20, 30])
def test_a_gzipped_csv_that_is_cut_off_is_told(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "ward.csv.gz"
    path.write_bytes(gzip.compress(b"age,name\n" + b"1,a\n" * 50)[:keep])
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_table(path, ["age"])


def test_a_gzipped_csv_that_was_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ward.csv.gz"
    data = bytearray(gzip.compress(b"age,name\n1,a\n"))
    data[10:14] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_table(path, ["age"])


def test_a_parquet_whose_notes_are_no_json_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ward.parquet"
    table = pa.Table.from_pandas(pd.DataFrame({"age": [1.0]}))
    parquet.write_table(table.replace_schema_metadata({b"pandas": b"{\x01"}), path)
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_table(path, ["age"])


def test_a_parquet_whose_text_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ward.parquet"
    text = pa.array([b"ill", b"\xfell"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"outcome": text}), path)
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_table(path, ["outcome"])

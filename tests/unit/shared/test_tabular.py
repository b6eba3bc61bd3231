"""The task `tabular`: encoding from declarations alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hanse.errors import DataError, NonFiniteDataError, TaskError
from hanse.task import Examples, load_task
from hypothesis import given, settings
from hypothesis import strategies as st

CLASSES = {"column": "y", "classes": ["no", "yes"]}


def read(folder: Path, text: str, column: dict[str, Any], target: Any = None) -> Examples:
    (folder / "ward.csv").write_text(text, encoding="utf-8")
    task = load_task("tabular", {"columns": {"x": column}, "target": target or CLASSES})
    return task.read(folder / "ward.csv")


def encode(folder: Path, cells: list[str], column: dict[str, Any]) -> list[list[float]]:
    text = "x,y\n" + "".join(f"{cell},no\n" for cell in cells)
    rows: list[list[float]] = read(folder, text, column).inputs[0].tolist()
    return rows


def test_numbers_are_clipped_and_scaled_by_the_declared_range(tmp_path: Path) -> None:
    column = {"type": "number", "low": 10, "high": 30}
    assert encode(tmp_path, ["10", "20", "30", "-5", "99"], column) == [[-1], [0], [1], [-1], [1]]


def test_a_logarithmic_range(tmp_path: Path) -> None:
    column = {"type": "number", "low": 0, "high": math.e**2 - 1, "scale": "log"}
    rows = encode(tmp_path, ["0", str(math.e - 1), str(math.e**2 - 1)], column)
    torch.testing.assert_close(torch.tensor(rows), torch.tensor([[-1.0], [0.0], [1.0]]))


def test_a_missing_number_is_zero_with_a_flag(tmp_path: Path) -> None:
    column = {"type": "number", "low": 0, "high": 2, "missing": "flag", "missing_values": [0]}
    assert encode(tmp_path, ["2", "", "0", "NaN"], column) == [[1, 0], [0, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    "column",
    [
        {"type": "number", "low": 0, "high": 2},
        {"type": "boolean"},
        {"type": "category", "values": ["1"]},
    ],
)
def test_missing_cells_are_refused_unless_declared(tmp_path: Path, column: dict[str, Any]) -> None:
    with pytest.raises(NonFiniteDataError, match=r"ward\.csv: column x: 1 of 2 .*row 2"):
        encode(tmp_path, ["1", ""], column)


def test_sentinels_are_refused_like_empty_cells(tmp_path: Path) -> None:
    column = {"type": "number", "low": 0, "high": 2, "missing_values": [0]}
    with pytest.raises(NonFiniteDataError, match="1 of 1"):
        encode(tmp_path, ["0"], column)


def test_booleans_in_many_spellings(tmp_path: Path) -> None:
    column = {"type": "boolean", "missing": "flag"}
    rows = encode(tmp_path, ["True", "no", "1", "0.0", ""], column)
    assert rows == [[1, 0], [-1, 0], [1, 0], [-1, 0], [0, 1]]
    with pytest.raises(DataError, match="neither true nor false"):
        encode(tmp_path, ["perhaps"], column)


def test_categories_are_one_hot_with_one_column_for_all_others(tmp_path: Path) -> None:
    column = {"type": "category", "values": ["a", "b"], "missing": "flag", "unknown": "flag"}
    assert encode(tmp_path, ["b", " a ", "c", ""], column) == [
        [0, 1, 0],
        [1, 0, 0],
        [0, 0, 1],
        [0, 0, 1],
    ]


def test_an_undeclared_category_is_refused_without_its_value(tmp_path: Path) -> None:
    column = {"type": "category", "values": ["a", "b"], "missing": "flag"}
    with pytest.raises(DataError, match="none of the declared values") as error:
        encode(tmp_path, ["a", "hidden"], column)
    assert "hidden" not in str(error.value)


def test_numeric_categories_are_compared_as_numbers(tmp_path: Path) -> None:
    column = {"type": "category", "values": [0, 3]}
    assert encode(tmp_path, ["3.0", "0"], column) == [[0, 1], [1, 0]]


def test_text_booleans_of_parquet_match_text_categories(tmp_path: Path) -> None:
    pd.DataFrame({"x": [True, False], "y": ["no", "yes"]}).to_parquet(tmp_path / "t.parquet")
    column = {"type": "category", "values": ["False", "True"]}
    task = load_task("tabular", {"columns": {"x": column}, "target": CLASSES})
    assert task.read(tmp_path / "t.parquet").inputs[0].tolist() == [[0, 1], [1, 0]]


NUMBER = {"type": "number", "low": 0, "high": 10, "missing": "flag"}
MAYBE = st.one_of(st.none(), st.floats(-1e6, 1e6))


@given(st.lists(MAYBE, min_size=2, max_size=20), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_records_encoding_does_not_depend_on_the_others(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float | None], pick: int
) -> None:
    folder = tmp_path_factory.mktemp("ward")
    cells = ["" if number is None else repr(number) for number in numbers]
    one = pick % len(cells)
    assert encode(folder, [cells[one]], NUMBER)[0] == encode(folder, cells, NUMBER)[one]


def test_classes_and_thresholds(tmp_path: Path) -> None:
    assert read(tmp_path, "x,y\n1,yes\n1,no\n", NUMBER).targets.tolist() == [1, 0]
    above = {"column": "y", "positive_above": 0}
    assert read(tmp_path, "x,y\n1,0\n1,3\n", NUMBER, above).targets.tolist() == [0, 1]
    numbered = {"column": "y", "classes": [1, 2, 3]}
    assert read(tmp_path, "x,y\n1,3.0\n1,1\n", NUMBER, numbered).targets.tolist() == [2, 0]


@pytest.mark.parametrize(
    "target", [CLASSES, {"column": "y", "positive_above": 0}, {"column": "y", "low": 0, "high": 1}]
)
def test_an_empty_target_is_never_guessed(tmp_path: Path, target: dict[str, Any]) -> None:
    with pytest.raises(NonFiniteDataError, match="column y: 1 of 1"):
        read(tmp_path, "x,y\n1,\n", NUMBER, target)


def test_an_unknown_class_is_refused_without_its_value(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column y: 1 of 2 cells are none") as error:
        read(tmp_path, "x,y\n1,no\n1,hidden\n", NUMBER)
    assert "hidden" not in str(error.value)


def test_regression_learns_in_the_range_and_is_judged_in_the_unit(tmp_path: Path) -> None:
    target = {"column": "y", "low": 0, "high": 100}
    task = load_task("tabular", {"columns": {"x": NUMBER}, "target": target})
    (tmp_path / "t.csv").write_text("x,y\n1,0\n1,50\n1,100\n1,500\n")
    examples = task.read(tmp_path / "t.csv")
    assert examples.targets.tolist() == [[-1], [0], [1], [1]]
    outputs = torch.tensor([[-1.0], [0.0], [1.0], [0.0]])
    assert task.loss(outputs, examples.targets).tolist() == [0, 0, 0, 1]
    metrics = task.metrics(outputs, examples.targets)
    assert metrics["mae"] == pytest.approx(12.5)
    assert metrics["rmse"] == pytest.approx(25)
    spread = sum((value - 62.5) ** 2 for value in (0, 50, 100, 100))
    assert metrics["r2"] == pytest.approx(1 - 2500 / spread)


def test_the_linear_model_starts_from_zero_and_fits_the_inputs() -> None:
    columns = {"a": NUMBER, "b": {"type": "category", "values": ["u", "v", "w"]}}
    model = load_task("tabular", {"columns": columns, "target": CLASSES}).model()
    assert model(torch.ones(4, 5)).tolist() == [[0, 0]] * 4


def test_the_perceptron_has_the_declared_layers() -> None:
    options = {
        "columns": {"a": NUMBER},
        "target": {"column": "y", "classes": ["a", "b", "c"]},
        "model": {"kind": "mlp", "hidden": [8, 4]},
    }
    shapes = [tuple(p.shape) for p in load_task("tabular", options).model().parameters()]
    assert shapes == [(8, 2), (8,), (4, 8), (4,), (3, 4), (3,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {}}, "columns"),
        ({"columns": {"x": {"type": "number", "low": 2, "high": 1}}}, "not below"),
        ({"columns": {"x": {"type": "number", "low": 0, "hgih": 1}}}, "hgih"),
        ({"columns": {"x": {"type": "text"}}}, "number"),
        ({"columns": {"x": {"type": "category", "values": ["a", "a"]}}}, "twice"),
        ({"columns": {"y": NUMBER}}, "y is the target"),
        ({"target": {"column": "y"}}, "give one of"),
        ({"target": {"column": "y", "positive_above": 0, "low": 1, "high": 2}}, "give one of"),
        ({"target": {"column": "y", "low": 1}}, "low and high"),
        ({"model": {"kind": "mlp"}}, "hidden"),
        ({"model": {"kind": "linear", "hidden": [3]}}, "hidden"),
        ({"modle": {}}, "did you mean model"),
    ],
)
def test_mistakes_in_the_options_are_named(change: dict[str, Any], message: str) -> None:
    options = {"columns": {"x": NUMBER}, "target": CLASSES} | change
    with pytest.raises(TaskError, match=message):
        load_task("tabular", options)

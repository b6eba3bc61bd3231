"""Dividing records among simulated sites."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from hanse.errors import DataError, JobError
from hanse_server.simulation.partition import column_of, partition, read_column
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

SPECS = st.one_of(
    st.just("iid"),
    st.floats(0.3, 100).map(lambda alpha: f"dirichlet:{alpha}"),
    st.integers(1, 4).map(lambda count: f"shards:{count}"),
)
TEN_CLASSES = torch.arange(10).repeat_interleave(200)


def unevenness(parts: list[Tensor], targets: Tensor) -> float:
    """Mean distance of the sites' shares of classes from those of the whole, 0 to 1."""
    whole = torch.bincount(targets) / len(targets)
    shares = [torch.bincount(targets[part], minlength=len(whole)) / len(part) for part in parts]
    return float(torch.stack([(share - whole).abs().sum() / 2 for share in shares]).mean())


@given(
    SPECS, st.lists(st.integers(0, 4), min_size=60, max_size=200), st.integers(1, 6), st.integers(0)
)
@settings(max_examples=60, deadline=None)
def test_each_record_goes_to_one_site_and_no_site_is_empty(
    spec: str, classes: list[int], sites: int, seed: int
) -> None:
    targets = torch.tensor(classes)
    parts = partition(spec, targets, sites, seed)
    assert len(parts) == sites
    assert all(len(part) > 0 for part in parts)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(classes)))
    assert all(part.dtype == torch.int64 and bool((part.diff() > 0).all()) for part in parts)
    again = partition(spec, targets, sites, seed)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("spec", ["iid", "dirichlet:0.5", "shards:2"])
def test_another_seed_divides_otherwise(spec: str) -> None:
    one, other = partition(spec, TEN_CLASSES, 10, 1), partition(spec, TEN_CLASSES, 10, 2)
    assert [part.tolist() for part in one] != [part.tolist() for part in other]


def test_a_smaller_alpha_makes_sites_differ_more() -> None:
    specs = ("dirichlet:100", "dirichlet:10", "dirichlet:1", "dirichlet:0.1")
    found = [unevenness(partition(spec, TEN_CLASSES, 10, 0), TEN_CLASSES) for spec in specs]
    assert found == sorted(found)
    assert found[-1] > 0.6
    assert unevenness(partition("iid", TEN_CLASSES, 10, 0), TEN_CLASSES) < 0.1


def test_iid_parts_differ_by_one_record_at_most() -> None:
    sizes = {len(part) for part in partition("iid", torch.zeros(103), 10, 0)}
    assert sizes == {10, 11}


def test_shards_hold_few_classes_and_equal_numbers() -> None:
    parts = partition("shards:2", TEN_CLASSES, 10, 0)
    assert {len(part) for part in parts} == {200}
    assert all(len(set(TEN_CLASSES[part].tolist())) <= 2 for part in parts)


def test_columns_give_one_site_a_value_in_order() -> None:
    wards = ["west", "east", "west", "north"]
    parts = partition("column:ward", torch.zeros(4), 99, 0, wards)
    assert [part.tolist() for part in parts] == [[1], [3], [0, 2]]


@pytest.mark.parametrize("name", ["ward.csv", "ward.parquet"])
def test_the_column_is_read_from_the_file(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"ward": ["a", " b", "a"], "x": [1, 2, 3]})
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name, index=False)
    else:
        frame.to_parquet(tmp_path / name)
    assert column_of("column:ward") == "ward"
    assert Counter(read_column(tmp_path / name, "ward")) == {"a": 2, "b": 1}


def test_an_empty_cell_names_no_site(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ward,x\na,1\n,2\n")
    with pytest.raises(DataError, match="column ward: 1 of 2 cells are empty"):
        read_column(tmp_path / "t.csv", "ward")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "none of iid"),
        ("random", "none of iid"),
        ("iid:3", "none of iid"),
        ("column:", "none of iid"),
        ("dirichlet", "ALPHA is not a number above 0"),
        ("dirichlet:0", "ALPHA is not a number above 0"),
        ("dirichlet:nan", "ALPHA is not a number above 0"),
        ("dirichlet:inf", "ALPHA is not a number above 0"),
        ("dirichlet:1e-9", "left one of 10 sites empty"),
        ("shards:x", "K is not a whole number"),
        ("shards:0", "K is not a whole number"),
        ("shards:3", "too few for 30 shards"),
        ("column:ward", "20 records, but no column"),
    ],
)
def test_specs_that_do_not_hold(spec: str, message: str) -> None:
    with pytest.raises(JobError, match=message) as error:
        partition(spec, torch.arange(2).repeat(10), 10, 0)
    assert error.value.remedy != JobError.remedy_hint


def test_more_sites_than_records() -> None:
    with pytest.raises(JobError, match="3 records are too few for 4 sites"):
        partition("iid", torch.zeros(3), 4, 0)


@pytest.mark.parametrize("spec", ["dirichlet:1", "shards:1"])
def test_a_regression_has_no_classes_to_divide_by(spec: str) -> None:
    with pytest.raises(JobError, match="predicts a number"):
        partition(spec, torch.zeros(20, 1), 2, 0)

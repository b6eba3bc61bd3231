"""Small versions of the benchmarks that start processes, so that they cannot rot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import big_updates, round_overhead, startup
from tests.benchmarks.federations import contest
from tests.benchmarks.federations.case import Case


def test_start_up_is_told() -> None:
    bare, command, torch, client = startup.rows(repeats=1)

    assert bare["seconds"] < command["seconds"] < client["seconds"]
    assert client["over"] == torch["what"]


def test_rounds_are_held_against_the_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PEERS", tmp_path)  # they have a test of their own

    rows = round_overhead.rows(Case(sites=2, megabytes=0.02, rounds=2), repeats=1)

    floor, hanse, *_ = rows
    assert [floor["contestant"], hanse["contestant"]] == ["floor", "Hanse"]
    assert floor["over_floor"] == hanse["over_hanse"] == 1.0
    assert hanse["over_floor"] == hanse["round_s"] / floor["round_s"]
    assert hanse["whole_round_s"] > hanse["round_s"]  # the checkpoint


def test_large_models_are_told_with_the_memory_of_the_server() -> None:
    case = Case(sites=3, megabytes=20, rounds=1)

    rows = big_updates.rows(((case, big_updates.OURS),))

    assert [row["contestant"] for row in rows] == ["floor", "Hanse"]
    assert all(row["sites"] == 3 and row["peak_models"] > 1 for row in rows)

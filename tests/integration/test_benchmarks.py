"""Small versions of the benchmarks that start processes, so that they cannot rot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import (
    big_updates,
    encodings,
    round_overhead,
    simulated_sites,
    simulation,
    startup,
)
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
    assert hanse["whole_s"] > hanse["round_s"]  # the checkpoint


def test_large_models_are_told_with_the_memory_of_the_server() -> None:
    case = Case(sites=3, megabytes=20, rounds=1)

    rows = big_updates.rows(((case, big_updates.OURS),))

    assert [row["contestant"] for row in rows] == ["floor", "Hanse"]
    assert all(row["sites"] == 3 and row["peak_models"] > 1 for row in rows)


def test_encodings_are_told_with_bytes_time_and_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise in place of digits: what is learnt is nothing, and what is sent is the same."""
    numbers = np.random.default_rng(1)
    for name, count in (("train.npz", 80), ("test.npz", 20)):
        images = numbers.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / name, images=images, labels=np.arange(count) % 10)
    some = ("plain", "int8", "topk 0.3")
    monkeypatch.setattr(encodings, "ENCODINGS", {name: encodings.ENCODINGS[name] for name in some})
    asked = encodings.digits_job(tmp_path / "test.npz", rounds=1, sites=2)

    digits = encodings.table(
        "digits", lambda seed: encodings.digits(tmp_path / "train.npz", asked), range(1), repeats=2
    )
    heart = encodings.table(
        "heart", lambda seed: encodings.heart(seed, rounds=2), range(2), repeats=2
    )

    for rows in (digits, heart):
        assert [row["encoding"] for row in rows] == list(some)
        assert rows[0]["share"] == 1.0
        assert rows[0]["lost"] == 0.0
        assert rows[1]["share"] < 0.27
        assert rows[2]["share"] < 0.13
        assert all(row["encode_ms"] > 0 and row["decode_ms"] > 0 for row in rows)
        assert all(0 <= row["accuracy"] <= 100 for row in rows)
    assert [row["seeds"] for row in (digits[0], heart[0])] == [1, 2]


def test_engines_of_the_simulation_are_held_against_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(1)
    for name, count in (("train.npz", 120), ("test.npz", 20)):
        images = numbers.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / name, images=images, labels=np.arange(count) % 10)
    monkeypatch.setattr(simulation, "PEERS", tmp_path)  # of what is not installed nothing is told
    small = simulation.Workload("small", {"kind": "mlp", "hidden": []}, 12, 10, 3, repeats=1)

    rows = simulation.measured(small, tmp_path / "train.npz", tmp_path / "test.npz")

    assert [row["contender"] for row in rows] == [*simulation.FLOORS, *simulation.ENGINES]
    assert rows[0]["times_plain"] == 1.0
    assert all(row["ms_an_update"] > 0 and row["first_round_ms"] > 0 for row in rows)


def test_the_memory_of_many_sites_is_told() -> None:
    few, more = simulated_sites.rows(sites=(20, 120), rounds=2)

    assert [few["sites"], more["sites"]] == [20, 120]
    assert more["opened"] > few["opened"] == 20
    assert few["first_round_s"] > 0

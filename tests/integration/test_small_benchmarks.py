"""Small versions of the benchmarks that need one process or a few, so that they cannot rot."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks import (
    accounting,
    byzantine,
    dp_epoch,
    dp_step,
    gpu,
    heart,
    secagg,
    simulation,
)


@pytest.fixture(autouse=True)
def _threads_as_before() -> None:
    torch.set_num_threads(1)  # as the benchmarks do


def test_accountants_agree_within_their_bounds() -> None:
    for row in accounting.rows():
        assert row["tight_epsilon"] <= row["renyi_epsilon"]


def test_a_private_step_is_held_against_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "MLP 784-128-10"
    monkeypatch.setattr(dp_step, "CASES", {name: dp_step.CASES[name]})
    monkeypatch.setattr(dp_step, "worthwhile", lambda rounds, spent: rounds < 1)
    measured = dp_step.in_a_process(dp_step.CASES[name], "hanse")  # one for all: each takes seconds
    monkeypatch.setattr(dp_step, "in_a_process", lambda case, variant: measured)

    (row,) = dp_step.rows()

    assert all(row[variant] > 0 for variant in dp_step.VARIANTS)
    assert row["hanse_mb"] >= 0


def test_a_private_epoch_is_held_against_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = dp_epoch.Case("MLP", dp_epoch.mlp, 200, (784,), 1)
    monkeypatch.setattr(dp_epoch, "CASES", [case])

    (row,) = dp_epoch.rows()

    assert row["ratio"] == pytest.approx(row["hanse"] / row["plain"])


def test_secure_rounds_are_held_against_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secagg, "WIDTHS", {"2k": 44})
    monkeypatch.setattr(secagg, "CASES", ((4, 0), (4, 1)))
    monkeypatch.setattr(secagg, "ROUNDS", 1)

    rows = secagg.rows()

    assert [(row["lost"], row["round"]) for row in rows] == [
        (0, "plain"),
        (0, "secure"),
        (1, "plain"),
        (1, "secure"),
    ]
    assert all(row["up_kb"] > 0 for row in rows)


def test_the_hospitals_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart, "SPLITS", 1)
    monkeypatch.setattr(heart, "NOISE_DRAWS", 1)

    split, mean = heart.rows()

    assert mean == split | {"split": "mean"}
    assert split["worst_alone"] <= split["best_alone"]


def test_hostile_sites_meet_each_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_digits(tmp_path, "train", 400)
    _write_digits(tmp_path, "t10k", 50)
    monkeypatch.setattr(byzantine, "TEST", "t10k-images-idx3-ubyte.gz")
    monkeypatch.setattr(byzantine, "ROUNDS", 1)
    monkeypatch.setattr(byzantine, "HOSTILE", (2,))
    monkeypatch.setattr(byzantine, "ATTACKS", {"nan": byzantine.ATTACKS["nan"]})

    rows = byzantine.rows(tmp_path)

    assert [row["strategy"] for row in rows] == list(byzantine.strategies(2, 1.0))
    assert all(0 <= row["nan"] <= 100 for row in rows)


def _write_digits(folder: Path, name: str, count: int) -> None:
    """Noise in the form of MNIST's files."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 28, 28), np.uint8)
    labels = random.integers(0, 10, count, np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        with gzip.open(folder / f"{name}-{kind}-ubyte.gz", "wb") as file:
            file.write(header + array.tobytes())


def test_training_on_a_gpu_is_measured_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_digits(tmp_path, "train", 400)
    name = "MLP 784-128-10"
    monkeypatch.setattr(gpu, "BATCHES", {name: 8})
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "WARM", 1)
    monkeypatch.setattr(gpu, "WORKERS", (1,))
    few = [replace(each, clients=20, records=10, rounds=2) for each in simulation.WORKLOADS]
    monkeypatch.setattr(simulation, "WORKLOADS", few)

    rows = gpu.rows(tmp_path, steps=2, models=(name,))

    contenders = {row["contender"] for row in rows}
    assert {"plain", "hanse, private", "vmap", "hanse vectorised, dp", "1 workers"} <= contenders
    assert all(row["samples_a_second"] > 0 for row in rows)

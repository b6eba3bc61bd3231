"""Simulating 100 and 10,000 sites of 10 generated digits: memory, start-up, time a round.

Each in a process of its own, one thread: logistic regression, a hundred sites a round. ``opened``
sites were asked at least once. ``grown_mb`` is the process's peak of memory over that before the
sites were laid out, the data set of ``data_mb`` included.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hanse.job import Job
from hanse.metrics import new_registry
from hanse_server.metrics import ServerMetrics
from hanse_server.simulate import PACE
from hanse_server.simulation import simulate
from hanse_server.simulation.sites import lay_out
from hanse_server.workspace import Workspace

RECORDS, COHORT, ROUNDS = 10, 100, 100
SITES = (100, 10_000)


def rows(sites: Sequence[int] = SITES, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """One row for each number of sites."""
    return [_row(count, rounds) for count in sites]


def _row(sites: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.simulated_sites", str(sites), str(rounds)]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    told = subprocess.run(command, env=surroundings, cwd=root, check=True, stdout=subprocess.PIPE)
    row: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return row


def measured(sites: int, rounds: int) -> dict[str, Any]:
    """One simulation, in this process."""
    torch.set_num_threads(1)
    job = Job.model_validate(
        {
            "name": "sites",
            "rounds": rounds,
            "task": {
                "name": "image",
                "options": {
                    "shape": [1, 28, 28],
                    "classes": 10,
                    "model": {"kind": "mlp", "hidden": []},
                },
            },
            "training": {"epochs": 1, "batch_size": 10, "optimizer": {"lr": 0.03}},
            "privacy": {"mechanism": "none"},
            "evaluation": {"federated": False},
            "strategy": {"quorum": 1, "fraction": min(1.0, COHORT / sites)},
        }
    )
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), np.random.default_rng(1)
        count = sites * RECORDS
        images = numbers.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        np.savez(folder / "digits.npz", images=images, labels=np.arange(count) % 10)
        del images
        before, started, ends, asked = _peak(), time.perf_counter(), list[float](), set[str]()
        laid_out = lay_out(
            job, data=folder / "digits.npz", partition_spec="iid", count=sites, folder=folder
        )

        def on_round(record: Any) -> None:
            ends.append(time.perf_counter())
            asked.update(record.sites)

        workspace, metrics = Workspace(folder / "run", job, pace=PACE), new_registry()
        simulate(
            job,
            laid_out,
            workspace,
            ServerMetrics(metrics, by_site=False),
            engine="auto",
            on_round=on_round,
        )
    grown = _peak() - before
    return {
        "sites": sites,
        "opened": len(asked),
        "data_mb": count * 28 * 28 / 1e6,
        "grown_mb": grown / 1e6,
        "first_round_s": ends[0] - started,
        "ms_a_round": 1e3 * (ends[-1] - ends[0]) / (len(ends) - 1),
    }


def _peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measured(int(sys.argv[1]), int(sys.argv[2]))) + "\n")

"""Updates in fewer bytes: bytes, time and accuracy (%) by encoding, against plain float32.

``digits`` are ten sites on MNIST: an MLP of 50,890 weights on the first 10,000 training images,
split by Dirichlet(0.5), 10 rounds of one local epoch, judged on the 10,000 test images. ``heart``
are the four hospitals of the example, without privacy and with an MLP of 32 hidden units, 40 rounds
of 5 steps, judged on the held-out patients of all. Each seed is another split, the same for all
encodings; ``lost`` are the points that an encoding loses to plain updates, the mean over the
seeds, and ``worst_lost`` those of the seed where it loses most. ``bytes`` are of all arrays that
the sites send in a round, numpy's headers included; ``share`` is what they are of plain ones.
Milliseconds are the median for one update: encoded with its error measured, as a site does it, and
made plain again.

Data: a folder with MNIST's four IDX files.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from hanse.aggregation import Encoding
from hanse.encodings import decode, encoding_of
from hanse.examples import example
from hanse.flower import to_tensor
from hanse.job import Job, load_job
from hanse.metrics import new_registry
from hanse.simulation import SimulatedSites
from hanse.task import load_task
from hanse_client.encoding import encode_update
from hanse_server.demo.comparison import Judge
from hanse_server.history import read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.simulation import simulate
from hanse_server.simulation.sites import lay_out, sites_of_folder
from hanse_server.workspace import Workspace

SEEDS = {"digits": range(5), "heart": range(10)}
TRAIN, TEST = "train-images-idx3-ubyte.gz", "test-images-idx3-ubyte.gz"
REPEATS = 15

ENCODINGS = {
    "plain": Encoding(),
    "float16": Encoding(name="float16"),
    "bfloat16": Encoding(name="bfloat16"),
    "int8": Encoding(name="int8"),
    "int4": Encoding(name="int4"),
    "topk 0.3": Encoding(name="topk", kept=0.3),
    "topk 0.05": Encoding(name="topk", kept=0.05),
}


@dataclass(frozen=True)
class Split:
    """One split of a task's records over its sites, and how its model is judged, in percent."""

    job: Job
    sites: SimulatedSites
    accuracy: Callable[[Workspace], float]


@dataclass(frozen=True)
class Run:
    accuracy: float
    bytes_a_round: float


def run(split: Split, encoding: Encoding) -> Run:
    job = split.job.model_copy(update={"encoding": encoding})
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "run", job)
        simulate(job, split.sites, workspace, ServerMetrics(new_registry()))
        up = mean(line["bytes_up"] for line in read_history(workspace.folder))
        return Run(split.accuracy(workspace), up)


# --- the tasks --------------------------------------------------------------------------------


def digits_job(test: Path, *, rounds: int = 10, sites: int = 10, seed: int = 0) -> Job:
    return Job.model_validate(
        {
            "name": "digits",
            "rounds": rounds,
            "seed": seed,
            "task": {
                "name": "image",
                "options": {
                    "shape": [1, 28, 28],
                    "classes": 10,
                    "mean": [0.13],
                    "std": [0.31],
                    "model": {"kind": "mlp", "hidden": [64]},
                },
            },
            "training": {"epochs": 1, "batch_size": 32, "optimizer": {"lr": 0.05}},
            "privacy": {"mechanism": "none"},
            "evaluation": {"federated": False, "every": rounds, "central": test},
            "strategy": {"quorum": sites},
        }
    )


@contextmanager
def digits(train: Path, job: Job) -> Iterator[Split]:
    count = job.strategy.quorum
    with tempfile.TemporaryDirectory() as folder:
        sites = lay_out(
            job, data=train, partition_spec="dirichlet:0.5", count=count, folder=Path(folder)
        )
        yield Split(job, sites, _judged_centrally)


def _judged_centrally(workspace: Workspace) -> float:
    value: float = read_history(workspace.folder)[-1]["central"]["accuracy"]
    return 100.0 * value


@contextmanager
def heart(seed: int, *, rounds: int = 40) -> Iterator[Split]:
    folder = example("heart")
    given = load_job(folder / "job-without-privacy.toml")
    options = {**given.task.options, "model": {"kind": "mlp", "hidden": [32]}}
    job = given.model_copy(
        update={
            "rounds": rounds,
            "seed": seed,
            "task": given.task.model_copy(update={"options": options}),
            "training": given.training.model_copy(update={"steps": 5}),
            "evaluation": given.evaluation.model_copy(update={"federated": False}),
        }
    )
    sites = sites_of_folder(folder).model_copy(update={"holdout_seed": seed, "waived": True})
    judge = Judge(job, dict(zip(sites.names, sites.files, strict=True)), seed)

    def accuracy(workspace: Workspace) -> float:
        return 100.0 * judge.row("", workspace.models / "last.safetensors").accuracy

    yield Split(job, sites, accuracy)


# --- what is measured ---------------------------------------------------------------------------


def milliseconds(job: Job, encoding: Encoding, repeats: int = REPEATS) -> tuple[float, float]:
    """To encode one update of the job's model, and to make it plain again."""
    state = load_task(job.task.name, job.task.options).model().state_dict()
    randomness = torch.Generator().manual_seed(1)
    update = {name: torch.randn(t.shape, generator=randomness) for name, t in state.items()}
    encoding_took, decoding_took = [], []
    for number in range(repeats):
        began = time.perf_counter()
        arrays = encode_update(update, encoding, seed=number).arrays
        encoded = time.perf_counter()
        for name, array in arrays.items():
            if encoding_of(array) == "plain":
                to_tensor(array)
            else:
                decode(array, update[name].dtype, tuple(update[name].shape))
        encoding_took.append(1e3 * (encoded - began))
        decoding_took.append(1e3 * (time.perf_counter() - encoded))
    return median(encoding_took), median(decoding_took)


def table(
    task: str, splits: Callable[[int], Any], seeds: Sequence[int], repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """One row an encoding; ``splits`` opens the split of a seed."""
    runs: dict[str, list[Run]] = {name: [] for name in ENCODINGS}
    for seed in seeds:
        with splits(seed) as split:
            job = split.job
            for name, encoding in ENCODINGS.items():
                runs[name].append(run(split, encoding))
    plain = runs["plain"]
    rows = []
    for name, encoding in ENCODINGS.items():
        lost = [a.accuracy - b.accuracy for a, b in zip(plain, runs[name], strict=True)]
        encode_ms, decode_ms = milliseconds(job, encoding, repeats)
        rows.append(
            {
                "task": task,
                "encoding": name,
                "bytes": mean(each.bytes_a_round for each in runs[name]),
                "share": mean(each.bytes_a_round for each in runs[name])
                / mean(each.bytes_a_round for each in plain),
                "encode_ms": encode_ms,
                "decode_ms": decode_ms,
                "accuracy": mean(each.accuracy for each in runs[name]),
                "lost": mean(lost),
                "worst_lost": max(lost),
                "seeds": len(seeds),
            }
        )
    return rows


def rows(data: Path) -> list[dict[str, Any]]:
    """Both tasks, one row for each encoding."""
    return [
        *table(
            "digits",
            lambda seed: digits(data / TRAIN, digits_job(data / TEST, seed=seed)),
            SEEDS["digits"],
        ),
        *table("heart", heart, SEEDS["heart"]),
    ]

"""Simulating federated averaging on MNIST: milliseconds a client update, against plain PyTorch.

Two workloads, one thread, ten clients a round, batches of 10, SGD with a rate of 0.03, one epoch:
logistic regression with 1,000 clients of 10 digits each (FLUTE's published workload), 100 rounds;
and a convolutional network of 206,922 weights with 100 clients of 100 digits each, 10 rounds.

The floors have no framework at all: ``plain`` trains one client after the other and averages;
``vmap`` stacks the round's clients and trains them at once by ``torch.func``. An engine of Hanse
runs the job as `hanse simulate` does, each message through every gate, history and models kept.
With ``dp`` it trains under differential privacy (noise multiplier 1, Poisson sampling).

A figure is the median over several runs, in turn, of the seconds from the end of a run's first
round to the end of its last, over the client updates in them. The first round, with all that is
made once, and what comes before it are told apart, of each contender's first run.

Peers that `make bench-peers` has installed run the same: pfl-research, and stock Flower's
simulation on Ray. Their models' accuracy is not told.

Data: a folder with MNIST's four IDX files.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hanse.job import Job
from hanse.metrics import new_registry
from hanse.simulation import read_parts
from hanse.task import Examples, load_task
from hanse_server.checkpoint import load_model
from hanse_server.metrics import ServerMetrics
from hanse_server.simulate import PACE
from hanse_server.simulation import EngineName, simulate
from hanse_server.simulation.sites import lay_out
from hanse_server.workspace import Workspace
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

SEED, COHORT, BATCH, LR = 1, 10, 10, 0.03
TRAIN, TEST = "train-images-idx3-ubyte.gz", "test-images-idx3-ubyte.gz"

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers"
"""What `make bench-peers` installs."""

CPU = torch.device("cpu")

State = dict[str, Tensor]
Train = Callable[[State, Sequence[int], int], State]


@dataclass(frozen=True)
class Workload:
    """A model, and how its clients are made."""

    name: str
    model: Mapping[str, Any]
    clients: int
    records: int
    rounds: int
    repeats: int

    def job(self, *, private: bool = False) -> Job:
        """The job; private clients draw each of their records with the rate of a batch of 10."""
        rate = BATCH / self.records
        privacy: dict[str, Any] = {"mechanism": "none"}
        if private:
            privacy = {"noise_multiplier": 1.0, "clipping_norm": 1.0, "sampling_rate": rate}
        return Job.model_validate(
            {
                "name": "simulation",
                "rounds": self.rounds,
                "seed": SEED,
                "task": {
                    "name": "image",
                    "options": {
                        "shape": [1, 28, 28],
                        "classes": 10,
                        "mean": [0.13],
                        "std": [0.31],
                        "model": dict(self.model),
                    },
                },
                "training": {"epochs": 1, "batch_size": BATCH, "optimizer": {"lr": LR}},
                "privacy": privacy,
                "evaluation": {"federated": False},
                "strategy": {"quorum": COHORT, "fraction": COHORT / self.clients},
            }
        )


WORKLOADS = [
    Workload("logistic", {"kind": "mlp", "hidden": []}, 1_000, 10, rounds=100, repeats=7),
    Workload(
        "cnn", {"kind": "cnn", "channels": [16, 32], "hidden": [128]}, 100, 100, 10, repeats=3
    ),
]

ENGINES: dict[str, tuple[EngineName, bool]] = {
    "hanse inline": ("inline", False),
    "hanse process": ("process", False),
    "hanse vectorised": ("vectorised", False),
    "hanse inline, dp": ("inline", True),
    "hanse vectorised, dp": ("vectorised", True),
}


@dataclass
class Taken:
    """What the runs of a contender took, in seconds; one entry a run."""

    start: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    model: State = field(default_factory=dict)


class Clock:
    """Told of the end of each round."""

    def __init__(self, taken: Taken) -> None:
        self._taken = taken
        self._began = time.perf_counter()
        self._ends: list[float] = []

    def round(self, *_: object) -> None:
        """A round has ended."""
        self._ends.append(time.perf_counter())

    def end(self, first_round: float, model: State) -> None:
        """The run has ended.

        Args:
            first_round: seconds that the first round took, of all up to its end.
        """
        first, last = self._ends[0], self._ends[-1]
        self._taken.start.append(first - self._began - first_round)
        self._taken.first.append(first_round)
        self._taken.update.append((last - first) / (len(self._ends) - 1) / COHORT)
        self._taken.model = model


class Case:
    """The clients of a workload, as Hanse divides the data set among them."""

    def __init__(self, workload: Workload, data: Path, folder: Path) -> None:
        self.workload, self._folder = workload, folder
        self.task = load_task(workload.job().task.name, workload.job().task.options)
        self.sites = lay_out(
            workload.job(), data=data, partition_spec="iid", count=workload.clients, folder=folder
        )
        assert self.sites.parts is not None
        self.examples = self.task.read(data)
        self.parts = list(read_parts(self.sites.parts, self.sites.names).values())
        self._runs = 0

    def for_peers(self) -> Path:
        """The clients' digits in a file, (clients, records, ...)."""
        path = self._folder / "clients.npz"
        if not path.exists():
            rows = torch.stack([part[: self.workload.records] for part in self.parts])
            images, labels = self.examples.inputs[0][rows], self.examples.targets[rows]
            np.savez(path, images=images.numpy(), labels=labels.numpy())
        return path

    def floor(self, train: Train, taken: Taken) -> None:
        """One run of a loop without any framework."""
        clock = Clock(taken)
        torch.manual_seed(SEED)
        began = time.perf_counter()
        weights = {name: each.clone() for name, each in self.task.model().state_dict().items()}
        for number in range(self.workload.rounds):
            weights = train(
                weights, torch.randperm(self.workload.clients)[:COHORT].tolist(), number
            )
            if number == 0:
                first = time.perf_counter() - began
            clock.round()
        clock.end(first, weights)

    def hanse(self, engine: EngineName, private: bool, taken: Taken, workers: int = 2) -> None:
        """One run of an engine of Hanse."""
        self._runs += 1
        job = self.workload.job(private=private)
        clock, rounds = Clock(taken), []
        workspace = Workspace(self._folder / f"run-{self._runs}", job, pace=PACE)

        def on_round(record: Any) -> None:
            clock.round()
            rounds.append(record)

        simulate(
            job,
            self.sites,
            workspace,
            ServerMetrics(new_registry(), by_site=False),
            engine=engine,
            workers=workers,
            on_round=on_round,
        )
        clock.end(rounds[0].seconds, load_model(workspace.models / "last.safetensors"))


def plain(case: Case, device: torch.device) -> Train:
    """One client after the other: load, train, subtract; then the mean."""
    model = case.task.model().to(device)

    def train(weights: State, chosen: Sequence[int], number: int) -> State:
        total = {name: torch.zeros_like(each) for name, each in weights.items()}
        for client in chosen:
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            own = case.examples.take(case.parts[client]).to(device)
            for indices in torch.split(torch.randperm(len(own)), BATCH):
                batch = own.take(indices.to(device))
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(*batch.inputs), batch.targets)
                torch.autograd.backward(loss)
                optimizer.step()
            for name, each in model.state_dict().items():
                total[name] += each.cpu() - weights[name]
        return {name: each + total[name] / len(chosen) for name, each in weights.items()}

    return train


def stacked(case: Case, device: torch.device) -> Train:
    """All clients of a round at once, their weights stacked."""
    model = case.task.model().to(device)

    def loss(weights: State, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, weights, (images,)), labels)

    gradients = vmap(grad(loss))

    def train(weights: State, chosen: Sequence[int], number: int) -> State:
        local = {
            name: each.to(device).expand(len(chosen), *each.shape) for name, each in weights.items()
        }
        everybody = torch.cat([case.parts[client] for client in chosen])
        own: Examples = case.examples.take(everybody).to(device)
        images, labels = (
            each.view(len(chosen), -1, *each.shape[1:]) for each in (*own.inputs, own.targets)
        )
        order = torch.stack([torch.randperm(labels.shape[1]) for _ in chosen]).to(device)
        rows = torch.arange(len(chosen), device=device)[:, None]
        for indices in torch.split(order, BATCH, dim=1):
            steps = gradients(local, images[rows, indices], labels[rows, indices])
            local = {name: each - LR * steps[name] for name, each in local.items()}
        return {name: each.mean(dim=0).cpu() for name, each in local.items()}

    return train


def peer(case: Case, name: str, taken: Taken) -> None:
    """One run of a peer, in a process of its own environment."""
    module, python = PEER_MODULES[name], PEERS / name / "bin" / "python"
    workload = case.workload
    asked = {
        "data": str(case.for_peers()),
        "model": dict(workload.model),
        "rounds": workload.rounds,
        "cohort": COHORT,
        "batch": BATCH,
        "lr": LR,
    }
    told = subprocess.run(
        [
            str(python),
            str(ROOT / "tests" / "benchmarks" / "peers" / f"{module}.py"),
            json.dumps(asked),
        ],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    ).stdout
    seconds = json.loads(told.strip().rpartition("\n")[2])
    taken.start.append(seconds["start"])
    taken.first.append(seconds["first"])
    taken.update.append(seconds["update"])


def installed() -> list[str]:
    """The peers that there are; of the others it is said that they are left out."""
    found = [name for name in PEER_MODULES if (PEERS / name / "bin" / "python").exists()]
    missing = sorted(set(PEER_MODULES) - set(found))
    if missing:
        sys.stderr.write(f"left out, as `make bench-peers` was not run: {', '.join(missing)}\n")
    return found


PEER_MODULES = {"pfl": "simulation_pfl", "flower-ray": "simulation_flower"}
PEER_RUNS = 3
"""Of each peer, at most."""


FLOORS: dict[str, Callable[[Case, torch.device], Train]] = {"plain": plain, "vmap": stacked}


def rows(data: Path) -> list[dict[str, Any]]:
    """One row for each workload and contender."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            row for workload in WORKLOADS for row in measured(workload, data / TRAIN, data / TEST)
        ]
    finally:
        torch.set_num_threads(threads)


def measured(workload: Workload, train: Path, test: Path) -> list[dict[str, Any]]:
    """The rows of one workload, its contenders run in turn."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(workload, train, Path(folder))
        peers = installed()
        taken: dict[str, Taken] = {name: Taken() for name in (*FLOORS, *ENGINES, *peers)}
        floors = {name: make(case, CPU) for name, make in FLOORS.items()}
        for repeat in range(workload.repeats):
            for name, loop in floors.items():
                case.floor(loop, taken[name])
            for name, (engine, private) in ENGINES.items():
                case.hanse(engine, private, taken[name])
            for name in peers if repeat < PEER_RUNS else ():
                peer(case, name, taken[name])
        plainly = statistics.median(taken["plain"].update)
        held_out = case.task.read(test)
        return [
            {
                "workload": workload.name,
                "contender": name,
                "ms_an_update": 1e3 * statistics.median(each.update),
                "fastest": 1e3 * min(each.update),
                "times_plain": statistics.median(each.update) / plainly,
                "first_round_ms": 1e3 * each.first[0],
                "start_s": each.start[0],
                "accuracy": accuracy(case, each.model, held_out) if each.model else "",
            }
            for name, each in taken.items()
        ]


@torch.no_grad()
def accuracy(case: Case, weights: State, held_out: Examples) -> float:
    """Per cent of the test digits that the last model tells right."""
    model = case.task.model()
    model.load_state_dict(weights)
    right = model(*held_out.inputs).argmax(dim=1) == held_out.targets
    return 100.0 * float(right.float().mean())

"""Training on a GPU: with and without privacy, in float32 and bfloat16, several clients at once.

*Local training* is a round of 10 steps at a site, from the weights that came to the update that
goes: what feeds the records, draws the noise and copies the weights is in it. ``plain`` is the loop
that everybody writes; its records lie in the processor's memory, as the site's do. In float32 it is
run as torch is by default, whose convolutions on a GPU are of TF32, and with them of float32
(``ieee``). Hanse's private steps make norms and sums of ``ieee`` whatever the passes were in;
Opacus' modes are run in it altogether. Times are medians over rounds in turn, after two in which
libraries choose their kernels and Hanse records the passes of most sizes of batches; memory is the
GPU's at its peak, above what the contender held before.

*Clients at once* are workers of the process engine that share the GPU, each training a client of
the simulation's CNN. *Simulation* is logistic regression with ten clients of ten records a round,
by the engines and by the loops of the benchmark ``simulation``, on the GPU as well.

Without a GPU the same runs on the processor, to see that it runs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hanse.job import Optimizer
from hanse.task import Examples, NoOptions, Task
from hanse_client.plan import LocalPlan, PrivateSteps
from hanse_client.privacy.precision import exact_float32
from hanse_client.privacy.settings import EngineSettings, Precision
from hanse_client.training import Trainer
from torch import Tensor, nn

from tests.benchmarks import dp_step, simulation

Round = Callable[[], object]

STEPS, WARM, ROUNDS, WORKERS = 10, 2, 4, (1, 2, 4)
BATCHES = {
    "MLP 784-128-10": 256,
    "CNN 1.2 M": 256,
    "ResNet18-GroupNorm 32x32": 256,
    "MiniLM-like, all weights": 64,
    "MiniLM-like, LoRA r=8": 64,
}


def rows(
    data: Path, *, steps: int = STEPS, models: tuple[str, ...] = tuple(BATCHES)
) -> list[dict[str, Any]]:
    """One row for each contender of each kind of work."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    images = data / simulation.TRAIN
    return [
        *(row for name in models for row in told(local(Case(name, device, steps)))),
        *told(simulated(images, device)),
        *told(at_once(images)),
    ]


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, shown as soon as they are there, lest a run that is cut short leave nothing."""
    for row in rows:
        print(*row.values(), flush=True)
    return rows


# --- local training ------------------------------------------------------------------------------


class Whole(Task[NoOptions]):
    """A benchmark's model as a task."""

    def __init__(self, case: dp_step.Case) -> None:
        super().__init__(NoOptions())
        self._case = case

    def model(self) -> nn.Module:
        return self._case.make()

    def read(self, source: Path) -> Examples:
        raise NotImplementedError

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


class Case:
    """A model, and the records of a site for a round of ``steps`` batches."""

    def __init__(self, name: str, device: torch.device, steps: int) -> None:
        made = replace(dp_step.CASES[name], batch=BATCHES[name])
        self.name, self.device, self.steps, self.batch = name, device, steps, made.batch
        torch.manual_seed(0)
        self.task = Whole(made)
        self.weights = {n: t.detach().clone() for n, t in self.task.model().state_dict().items()}
        self.examples = replace(made, batch=steps * made.batch).examples()

    def plan(self, *, private: bool) -> LocalPlan:
        privacy = PrivateSteps(
            sampling_rate=1 / self.steps, noise_multiplier=1.0, clipping_norm=1.0
        )
        return LocalPlan(
            steps=self.steps,
            batch_size=self.batch,
            privacy=privacy if private else None,
            optimizer=Optimizer(name="sgd", lr=1e-3),
            lr=1e-3,
            loss="task",
            augment=False,
            proximal_mu=0.0,
            seed=1,
        )

    def batches(self) -> Iterator[Examples]:
        order = torch.randperm(len(self.examples))
        for indices in torch.split(order, self.batch):
            yield self.examples.take(indices).to(self.device)

    def model(self) -> nn.Module:
        return self.task.model().to(self.device).train()


def hanse(case: Case, precision: Precision, *, private: bool) -> Round:
    trainer = Trainer(case.task, case.device, engine=EngineSettings(precision=precision))
    return lambda: trainer.train(case.weights, case.examples, case.plan(private=private))


def plain(case: Case, precision: Precision, *, ieee: bool = False) -> Round:
    model = case.model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    lowered = precision == "bfloat16"

    def train() -> dict[str, Tensor]:
        model.load_state_dict(case.weights)
        with as_usual() if not ieee else exact_float32(case.device):
            for batch in case.batches():
                optimizer.zero_grad()
                with torch.autocast(case.device.type, torch.bfloat16, enabled=lowered):
                    outputs = model(*batch.inputs)
                    loss = nn.functional.cross_entropy(outputs, batch.targets)
                torch.autograd.backward(loss)
                optimizer.step()
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    return train


@contextmanager
def as_usual() -> Iterator[None]:
    """Precision as torch has it by default."""
    yield


def opacus(case: Case, mode: str) -> Round:
    """Opacus' optimiser at each batch, fed as ``plain`` is."""
    model = case.model()
    step = dp_step.MAKERS[mode](model, case.batch)

    def train() -> dict[str, Tensor]:
        with exact_float32(case.device):
            for batch in case.batches():
                step(batch)
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    return train


CONTENDERS: dict[tuple[str, str], Callable[[Case], Round]] = {
    ("plain", "float32, TF32"): lambda case: plain(case, "float32"),
    ("plain", "float32, ieee"): lambda case: plain(case, "float32", ieee=True),
    ("plain", "bfloat16"): lambda case: plain(case, "bfloat16"),
    ("hanse", "float32, TF32"): lambda case: hanse(case, "float32", private=False),
    ("hanse", "bfloat16"): lambda case: hanse(case, "bfloat16", private=False),
    ("hanse, private", "float32, TF32"): lambda case: hanse(case, "float32", private=True),
    ("hanse, private", "bfloat16"): lambda case: hanse(case, "bfloat16", private=True),
    ("opacus ghost", "float32, ieee"): lambda case: opacus(case, "opacus_ghost"),
    ("opacus hooks", "float32, ieee"): lambda case: opacus(case, "opacus_hooks"),
}


@dataclass
class Taken:
    """Of a contender: seconds a round, and MB of the GPU at its peak."""

    seconds: list[float]
    megabytes: float


def local(case: Case) -> list[dict[str, Any]]:
    """The rows of one model."""
    ready: dict[tuple[str, str], tuple[Round, Taken]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, make in CONTENDERS.items():
            before = memory(case.device)
            try:
                train = make(case)
                for _ in range(WARM):
                    train()
            except dp_step.UNTRAINABLE:
                continue  # a mode that cannot train the model has no row
            ready[key] = train, Taken([], peak(case.device) - before)
        for _ in range(ROUNDS):
            for train, taken in ready.values():
                taken.seconds.append(timed(train, case.device))
    medians = {key: statistics.median(taken.seconds) for key, (_, taken) in ready.items()}
    plainly = {
        precision: medians["plain", precision] for name, precision in medians if name == "plain"
    }
    return [
        {
            "work": f"{case.name}, batches of {case.batch}",
            "contender": name,
            "precision": precision,
            "samples_a_second": case.steps * case.batch / seconds,
            "ms_a_step": 1e3 * seconds / case.steps,
            "times_plain": seconds / plainly[precision],
            "gpu_mb": ready[name, precision][1].megabytes,
        }
        for (name, precision), seconds in medians.items()
    ]


def timed(train: Round, device: torch.device) -> float:
    """Seconds until the device has done it all."""
    synchronize(device)
    began = time.perf_counter()
    train()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> float:
    """MB in use on the GPU; its peak begins here."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)  # begins to use it, the first time
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


# --- several clients on one GPU, and simulations -------------------------------------------------


def at_once(images: Path) -> list[dict[str, Any]]:
    """A client update of the CNN, by workers that share the GPU."""
    workload = replace(simulation.WORKLOADS[1], rounds=min(6, simulation.WORKLOADS[1].rounds))
    with tempfile.TemporaryDirectory() as folder:
        case = simulation.Case(workload, images, Path(folder))
        taken = {workers: simulation.Taken() for workers in WORKERS}
        for workers, each in taken.items():
            case.hanse("process", False, each, workers=workers)
        alone = taken[WORKERS[0]].update[0]
        return [
            row_of(
                f"clients of {workload.records} records, a CNN",
                f"{workers} workers",
                each,
                workload,
                alone,
            )
            for workers, each in taken.items()
        ]


def simulated(images: Path, device: torch.device) -> list[dict[str, Any]]:
    """A client update of logistic regression, by loops and engines."""
    workload = replace(simulation.WORKLOADS[0], rounds=min(20, simulation.WORKLOADS[0].rounds))
    with tempfile.TemporaryDirectory() as folder:
        case = simulation.Case(workload, images, Path(folder))
        taken = {name: simulation.Taken() for name in (*simulation.FLOORS, *simulation.ENGINES)}
        for _ in range(3):
            for name, make in simulation.FLOORS.items():
                case.floor(make(case, device), taken[name])
            for name, (engine, private) in simulation.ENGINES.items():
                if engine != "process":
                    case.hanse(engine, private, taken[name])
        alone = statistics.median(taken["plain"].update)
        return [
            row_of(f"clients of {workload.records} records, logistic", name, each, workload, alone)
            for name, each in taken.items()
            if each.update
        ]


def row_of(
    work: str, contender: str, taken: simulation.Taken, workload: simulation.Workload, alone: float
) -> dict[str, Any]:
    seconds = statistics.median(taken.update)
    return {
        "work": work,
        "contender": contender,
        "precision": "float32",
        "samples_a_second": workload.records / seconds,
        "ms_a_step": 1e3 * seconds / (workload.records / simulation.BATCH),
        "times_plain": seconds / alone,
        "gpu_mb": None,
    }

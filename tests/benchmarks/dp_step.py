"""A step of private training: Hanse's engine, Opacus' modes and plain SGD.

Time is the median over rounds in which each variant takes one step, in an order of its own, so
that whatever else the machine does, and what a step leaves in its caches, hits all alike. All
compute in one thread; Hanse draws the noise of more than 131,072 weights in a second one, while the
step is under way. Memory is what a step adds at its peak to a process of its own that holds the
model and the batch. A mode that cannot train a model gives null.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hanse.task import Examples
from hanse_client.plan import PrivateSteps
from hanse_client.privacy.engine import DpEngine
from hanse_client.steps import PlainStep, trainable
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

VARIANTS = ("plain", "opacus_hooks", "opacus_ghost", "hanse")
LEARNING_RATE, CLIPPING_NORM, NOISE_MULTIPLIER = 1e-3, 1.0, 1.0

Step = Callable[[], object]

FedStep = Callable[[Examples], object]
"""A step on the records that it is given."""

UNTRAINABLE = RuntimeError, NotImplementedError, ValueError, AttributeError
"""How a mode says that it cannot train a model."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


# --- the models ------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(32, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(32, channels),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False),
                nn.GroupNorm(32, channels),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.convolutions(inputs) + self.shortcut(inputs))


def resnet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(32, 64)]
    layers.append(nn.ReLU())
    before = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(before, channels, stride), Residual(channels, channels, 1)]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class MiniLm(nn.Module):
    """BERT as transformers writes it, in the shape of MiniLM-L6-H384."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=30522,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config.num_labels = 4
        self.bert = BertForSequenceClassification(config)

    def forward(self, tokens: Tensor) -> Tensor:
        # A row of positions for each record: Opacus cannot do with one row for all.
        positions = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        kinds = torch.zeros_like(tokens)
        outputs = self.bert(tokens, position_ids=positions, token_type_ids=kinds)
        return outputs.logits  # type: ignore[no-any-return]


def lora() -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    model = MiniLm()
    settings = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
    inject_adapter_in_model(settings, model.bert)  # in place
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "classifier" in name)
    return model


def images(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape)


def tokens(count: int) -> Tensor:
    return torch.randint(0, 30522, (count, 64))


@dataclass(frozen=True)
class Case:
    model: str
    batch: int
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int = 10

    def examples(self) -> Examples:
        generator = torch.manual_seed(1)
        inputs = self.inputs(self.batch)
        return Examples((inputs,), torch.randint(0, 4, (self.batch,), generator=generator))


CASES = {
    case.model: case
    for case in (
        Case("MLP 784-128-10", 256, mlp, images(784)),
        Case("LeNet 28x28", 256, lenet, images(1, 28, 28)),
        Case("CNN 1.2 M", 64, cnn, images(1, 28, 28)),
        Case("ResNet18-GroupNorm 32x32", 64, resnet, images(3, 32, 32)),
        Case("MiniLM-like, all weights", 64, MiniLm, tokens),
        Case("MiniLM-like, LoRA r=8", 64, lora, tokens),
    )
}


# --- the variants ----------------------------------------------------------------------------


def plain(model: nn.Module, batch: int) -> FedStep:
    return PlainStep(model, cross_entropy, sgd(model), lambda: None)


def hanse(model: nn.Module, batch: int) -> FedStep:
    privacy = PrivateSteps(
        sampling_rate=0.01, noise_multiplier=NOISE_MULTIPLIER, clipping_norm=CLIPPING_NORM
    )
    return DpEngine(
        model,
        cross_entropy,
        sgd(model),
        privacy,
        batch_size=batch,
        pull=lambda: None,
    )


def opacus_hooks(model: nn.Module, batch: int) -> FedStep:
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(sgd(model), **_mechanism(batch))

    def step(records: Examples) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(wrapped(*records.inputs), records.targets).mean())
        optimizer.step()

    return step


def opacus_ghost(model: nn.Module, batch: int) -> FedStep:
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="mean", max_grad_norm=CLIPPING_NORM, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(sgd(model), **_mechanism(batch))
    loss = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(), "mean")

    def step(records: Examples) -> None:
        optimizer.zero_grad()
        loss(wrapped(*records.inputs), records.targets).backward()
        optimizer.step()

    return step


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trainable(model), lr=LEARNING_RATE)


def _mechanism(batch: int) -> dict[str, Any]:
    return {
        "noise_multiplier": NOISE_MULTIPLIER,
        "max_grad_norm": CLIPPING_NORM,
        "expected_batch_size": batch,
        "loss_reduction": "mean",
    }


MAKERS: dict[str, Callable[[nn.Module, int], FedStep]] = {
    "plain": plain,
    "opacus_hooks": opacus_hooks,
    "opacus_ghost": opacus_ghost,
    "hanse": hanse,
}


def ready(case: Case, variant: str) -> Step | None:
    """A step of that variant, taken once already; None if it cannot train the model."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            step, records = MAKERS[variant](case.make().train(), case.batch), case.examples()
            step(records)
        except UNTRAINABLE:
            return None
    return lambda: step(records)


# --- the measurements ------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [
        {
            "model": case.model,
            "batch": case.batch,
            **seconds(case),
            **{f"{variant}_mb": in_a_process(case, variant) for variant in VARIANTS},
        }
        for case in CASES.values()
    ]


def seconds(case: Case) -> dict[str, float | None]:
    """The median time of a step of each variant."""
    steps = {variant: step for variant in VARIANTS if (step := ready(case, variant))}
    taken: dict[str, list[float]] = {variant: [] for variant in steps}
    order = random.Random(0)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while worthwhile(len(taken["plain"]), time.perf_counter() - started):
            for variant in order.sample(list(steps), len(steps)):
                before = time.perf_counter()
                steps[variant]()
                taken[variant].append(time.perf_counter() - before)
    medians = {variant: statistics.median(times) for variant, times in taken.items()}
    return {variant: medians.get(variant) for variant in VARIANTS}


def worthwhile(rounds: int, spent: float) -> bool:
    """Whether another round is worth its time."""
    return rounds < 5 or (rounds < 100 and spent < 30.0)


def in_a_process(case: Case, variant: str) -> float | None:
    """The peak memory of a step in MB, from a process of its own."""
    found = subprocess.run(
        [sys.executable, __file__, case.model, variant],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    megabytes: float | None = json.loads(found.stdout.splitlines()[-1])
    return megabytes


def peak_memory(case: Case, variant: str) -> float | None:
    """By how many MB a step's peak is above what the process held before it; Linux only."""
    torch.set_num_threads(1)
    step = ready(case, variant)
    if step is None:
        return None
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the first step freed goes back to the system
    process = Path("/proc/self")
    before = held(process, "VmRSS")
    (process / "clear_refs").write_text("5")  # the peak begins here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step()
    return held(process, "VmHWM") - before


def held(process: Path, what: str) -> float:
    """In MB."""
    lines = (process / "status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(what))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(peak_memory(CASES[sys.argv[1]], sys.argv[2])))

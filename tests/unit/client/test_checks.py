"""Models and losses that cannot be proved are refused, and those that can are let through."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hanse.errors import CoupledLossError, TaskError, UnprovableModelError
from hanse.job import Job
from hanse.task import Examples, NoOptions, Task
from hanse_client.plan import plan_round
from hanse_client.privacy.checks import (
    check_augmentation,
    check_per_example,
    check_provable,
)
from hanse_client.privacy.choice import choose_backend
from hanse_client.training import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

EXAMPLES = Examples((torch.randn(10, 6),), torch.zeros(10, dtype=torch.long))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def perceptron(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *extra, nn.Tanh(), nn.Linear(8, 3))


def still(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


class RunningMean(nn.Module):
    """Batch statistics of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(8),
        nn.BatchNorm2d(8),
        nn.BatchNorm3d(8),
        nn.SyncBatchNorm(8),
        nn.LazyBatchNorm1d(),
        nn.BatchNorm1d(8, affine=False),
        nn.BatchNorm1d(8, track_running_stats=False),
        nn.BatchNorm1d(8, affine=False, track_running_stats=False),
        still(nn.BatchNorm1d(8)),
        nn.InstanceNorm1d(8, track_running_stats=True),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        RunningMean(),
    ],
    ids=repr,
)
def test_layers_with_batch_statistics_are_refused_however_they_are_set(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(layer))
    with pytest.raises(UnprovableModelError, match=rf"layer '1\.0' \({type(layer).__name__}\)"):
        check_provable(model)


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.InstanceNorm1d(8)])
def test_layers_that_look_at_one_record_are_not(layer: nn.Module) -> None:
    check_provable(nn.Sequential(nn.Linear(6, 8), layer))


def test_a_table_that_shrinks_the_rows_it_is_asked_for_is_refused_frozen_or_not() -> None:
    table = nn.Embedding(5, 3, max_norm=1.0)
    for model in (nn.Sequential(table), nn.Sequential(still(table), nn.Linear(3, 3))):
        with pytest.raises(UnprovableModelError, match=r"'0' \(Embedding\) has max_norm"):
            check_provable(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_refused_where_it_is_trained(dtype: torch.dtype) -> None:
    model = perceptron().to(dtype)
    with pytest.raises(UnprovableModelError, match=r"parameter '0.weight' is torch\."):
        check_provable(model)
    check_provable(model.requires_grad_(False))


# --- losses ---------------------------------------------------------------------------------


def weighted_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 3.0, 2.0])[targets]
    return weights * cross_entropy(outputs, targets) / weights.sum()


def ignoring_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return (
        F.cross_entropy(outputs, targets, reduction="none", ignore_index=1) / (targets != 1).sum()
    )


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    similar = F.normalize(outputs, dim=1) @ F.normalize(outputs, dim=1).T
    return F.cross_entropy(similar, torch.arange(len(outputs)), reduction="none")


def in_pairs(outputs: Tensor, targets: Tensor) -> Tensor:
    pairs = outputs.reshape(-1, 2, outputs.shape[1])
    return (pairs[:, 0] - pairs[:, 1]).square().sum(dim=1).repeat_interleave(2)


def coupled_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    hidden = outputs.mean()
    return cross_entropy(outputs, targets) + hidden - hidden.detach()


def scalar(outputs: Tensor, targets: Tensor) -> Tensor:
    from hanse_client.steps import record_loss

    class Reduced:
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 3.0, 2.0]))

    return record_loss("task", Reduced())(outputs, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "loss", [weighted_mean, ignoring_mean, contrastive, in_pairs, coupled_gradient, scalar]
)
def test_losses_that_couple_records_are_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(CoupledLossError):
        check_per_example(perceptron(), loss, EXAMPLES)


def test_class_weights_without_a_mean_are_not() -> None:
    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        weight = torch.tensor([1.0, 3.0, 2.0])
        return F.cross_entropy(outputs, targets, reduction="none", weight=weight)

    check_per_example(perceptron(), weighted, EXAMPLES)


def test_a_loss_that_is_not_finite_is_told() -> None:
    with pytest.raises(TaskError, match="not finite"):
        check_per_example(perceptron(), lambda o, t: cross_entropy(o, t) / 0.0, EXAMPLES)


# --- models ---------------------------------------------------------------------------------


class Centred(nn.Module):
    """Batch normalisation's mean, without its type or its buffers."""

    def __init__(self, *, only_in_training: bool = False) -> None:
        super().__init__()
        self.only_in_training = only_in_training

    def forward(self, inputs: Tensor) -> Tensor:
        if self.only_in_training and not self.training:
            return inputs
        return inputs - inputs.mean(dim=0)


class Shaken(nn.Module):
    """Dropout of somebody's own, which no probe can put to rest."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.empty_like(inputs).bernoulli_(0.5) if self.training else inputs


class Restless(nn.Module):
    """Noise that no seed of torch's repeats."""

    def forward(self, inputs: Tensor) -> Tensor:
        noise = torch.from_numpy(np.random.default_rng().random(inputs.shape)).float()
        return inputs * noise if self.training else inputs


class Hidden(nn.Module):
    """Looks at the whole batch behind dropout that is no layer, in training only."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, inputs: Tensor) -> Tensor:
        dropped = F.dropout(inputs, 0.5, self.training)
        return self.mix(dropped) if self.training else dropped


class Drifting(nn.Module):
    """A frozen weight that training does not learn, and that moves all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.scale.add_(inputs.detach().mean(dim=0), alpha=0.1)
        return inputs


class Remembering(nn.Module):
    """A buffer that learns from the records."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.memory = 0.9 * self.memory + 0.1 * inputs.detach().mean(dim=0)
        return inputs


class Borrowing(nn.Module):
    """A weight used both by its layer and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(self.layer(inputs).tanh(), self.layer.weight)


class Texts(nn.Module):
    """Embedding, attention and functional dropout, as encoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(50, 8), nn.LayerNorm(8)
        self.query, self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.dropout(self.embedding(tokens), 0.3, self.training)
        attention = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(dim=2)
        return self.out(self.norm(attention @ x).mean(dim=1))  # type: ignore[no-any-return]


def check_all(model: nn.Module, examples: Examples) -> None:
    check_per_example(model, cross_entropy, examples)
    choose_backend(model, cross_entropy, examples)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: perceptron(Centred()), "depends on the other records"),
        (lambda: perceptron(Centred(only_in_training=True)), "depends on the other records"),
        (
            lambda: perceptron(nn.Dropout(0.5), Centred(only_in_training=True)),
            "depends on the other records",
        ),
        (lambda: perceptron(Shaken(), Centred()), "depends on the other records"),
        (lambda: perceptron(Hidden(lambda x: x - x.mean(dim=0))), "depends on the other records"),
        (lambda: perceptron(Hidden(lambda x: x / len(x))), "depends on the other records"),
        (lambda: perceptron(Remembering()), "buffer '1.memory' changes"),
        (lambda: perceptron(Drifting()), "parameter '1.scale' changes"),
        (Borrowing, "'layer.weight' is used outside"),
        (lambda: perceptron(Restless()), "randomness is not torch's"),
    ],
    ids=[
        "centred",
        "in-training",
        "with-dropout",
        "random",
        "hidden",
        "hidden-size",
        "remembering",
        "drifting",
        "borrowing",
        "restless",
    ],
)
def test_models_that_mix_or_hide_records_are_refused(
    model: Callable[[], nn.Module], match: str
) -> None:
    with pytest.raises(UnprovableModelError, match=match) as refusal:
        check_all(model(), EXAMPLES)
    assert refusal.value.remedy


@pytest.mark.parametrize(
    ("model", "examples"),
    [
        (lambda: perceptron(nn.Dropout(0.5)), EXAMPLES),
        (lambda: perceptron(Shaken()), EXAMPLES),
        (lambda: perceptron(nn.GroupNorm(2, 8), nn.LayerNorm(8)), EXAMPLES),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Dropout2d(), nn.Flatten(),
                nn.Linear(4 * 36, 3),
            ),
            Examples((torch.rand(5, 1, 8, 8),), torch.zeros(5, dtype=torch.long)),
        ),
        (Texts, Examples((torch.zeros(3, 7, dtype=torch.long),), torch.zeros(3).long())),
    ],
    ids=["dropout", "random", "norms", "convolution", "texts"],
)  # fmt: skip
def test_models_of_independent_records_pass(
    model: Callable[[], nn.Module], examples: Examples
) -> None:
    probe = model()
    check_provable(probe)
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    check_all(probe, examples)
    assert probe.training
    assert all(torch.equal(before[name], value) for name, value in probe.state_dict().items())


def test_a_layer_that_opacus_cannot_handle_is_refused() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            self.register_buffer("scale", torch.ones(3))

    with pytest.raises(UnprovableModelError, match="Opacus cannot"):
        choose_backend(Scaled(), cross_entropy, EXAMPLES)


def test_the_outcome_is_no_function_of_the_data() -> None:
    seen: list[Tensor] = []

    def spy(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.extend([outputs.detach(), targets])
        return cross_entropy(outputs, targets)

    def probed(examples: Examples) -> list[Tensor]:
        seen.clear()
        torch.manual_seed(0)
        check_per_example(perceptron(), spy, examples)
        return list(seen)

    ordinary = probed(EXAMPLES)
    strange = probed(Examples((torch.full((1, 6), torch.nan),), torch.tensor([2])))
    assert all(torch.equal(one, other) for one, other in zip(ordinary, strange, strict=True))


class Augmented(Task[NoOptions]):
    """Noise for each record on its own."""

    def model(self) -> nn.Module:
        return perceptron()

    def read(self, source: Path) -> Examples:
        return EXAMPLES

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (inputs[0] + torch.rand(inputs[0].shape, generator=generator),)


class Mixed(Augmented):
    """Mixup (Zhang et al. 2018): half of each record is another one."""

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(inputs[0]), generator=generator)
        return (0.5 * inputs[0] + 0.5 * inputs[0][order],)


def test_an_augmentation_that_mixes_records_is_refused() -> None:
    check_augmentation(Augmented(NoOptions()), EXAMPLES)
    with pytest.raises(UnprovableModelError, match="augmentation"):
        check_augmentation(Mixed(NoOptions()), EXAMPLES)


def test_training_tries_the_augmentation_when_it_is_on() -> None:
    trainer = Trainer(Mixed(NoOptions()), torch.device("cpu"))
    for augment in (False, True):
        job = Job.model_validate(
            {
                "name": "mixed",
                "rounds": 1,
                "task": {"name": "x:Y"},
                "training": {"steps": 1, "augment": augment},
                "privacy": {"noise_multiplier": 1.0},
            }
        )
        with pytest.raises(UnprovableModelError) if augment else nullcontext():
            trainer.check(EXAMPLES, plan_round(job, 1, 100, site="s"))


def test_checking_takes_the_memory_of_a_few_models_whatever_is_tried() -> None:
    """In a process of its own: the peak of one that has run other tests tells nothing."""
    told = subprocess.run(
        [sys.executable, "-c", _CHECKED], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    assert 2.0 < float(told) < 7.0  # the probe, two gradients, and what a backend makes of them


_CHECKED = """
import gc
from pathlib import Path
import torch
from hanse.task import Examples
from hanse_client.privacy.checks import check_per_example
from hanse_client.privacy.choice import choose_backend
from torch import nn

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")

def peak():
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1]) * 1024

def check(width):
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    examples = Examples((torch.rand(4, width),), torch.zeros(4, dtype=torch.int64))
    check_per_example(model, loss, examples)
    choose_backend(model, loss, examples)

check(10)
before = peak()
check(3000)
print((peak() - before - 4 * 3000**2) / (4 * 3000**2))
"""

"""`check_task` on tasks that are right, and on tasks with one fault each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hanse.task import Examples, NoOptions, RecordMetric, Task
from hanse.taskcheck import Finding, check_task
from torch import Tensor, nn


class Sound(Task[NoOptions]):
    """Two classes of three numbers."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def read(self, source: Path) -> Examples:
        return Examples((torch.linspace(0, 1, 30).view(10, 3),), torch.arange(10) % 2)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": float((outputs.argmax(dim=1) == targets).float().mean())}


class BatchNormed(Sound):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Frozen(Sound):
    def model(self) -> nn.Module:
        return nn.Linear(3, 2).requires_grad_(False)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.used(inputs)
        return outputs


class HalfUsed(Sound):
    def model(self) -> nn.Module:
        return Idle()


class WrongWidth(Sound):
    def model(self) -> nn.Module:
        return nn.Linear(5, 2)


class Unreadable(Sound):
    def read(self, source: Path) -> Examples:
        raise KeyError("column")


class Empty(Sound):
    def read(self, source: Path) -> Examples:
        return Examples((torch.zeros(0, 3),), torch.zeros(0, dtype=torch.int64))


class NotFinite(Sound):
    def read(self, source: Path) -> Examples:
        return Examples((torch.full((4, 3), float("nan")),), torch.zeros(4, dtype=torch.int64))


class Reduced(Sound):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


class Coupled(Sound):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = super().loss(outputs, targets)
        return losses * losses.detach().mean()


class Unbounded(Sound):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) / 0


class NoNumber(Sound):
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": float("nan")}


class OneForAll(Sound):
    def record_metrics(self) -> dict[str, RecordMetric]:
        return {"accuracy": RecordMetric(values=lambda outputs, targets: outputs.sum())}


class BeyondItsBound(Sound):
    def record_metrics(self) -> dict[str, RecordMetric]:
        return {"age": RecordMetric(values=lambda outputs, targets: 40.0 + targets, bound=30.0)}


class Standardised(Sound):
    def record_metrics(self) -> dict[str, RecordMetric]:
        def values(outputs: Tensor, targets: Tensor) -> Tensor:
            sizes: Tensor = outputs.norm(dim=1)
            return sizes / sizes.sum()

        return {"size": RecordMetric(values=values)}


class TwoMeanings(Sound):
    def record_metrics(self) -> dict[str, RecordMetric]:
        return {"accuracy": RecordMetric(values=lambda outputs, targets: 1.0 + 0 * targets)}


class Cropping(Sound):
    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        return (inputs[0][:, 1:],)


def check(kind: type[Sound], monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Finding]:
    monkeypatch.setattr("hanse.task._task_type", lambda name: kind)
    return check_task(kind.__name__, options, Path("sample.csv"))


def test_a_sound_task_passes_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = check(Sound, monkeypatch)
    assert [(finding.name, finding.ok) for finding in findings] == [
        ("task", True),
        ("model", True),
        ("weights", True),
        ("data", True),
        ("loss", True),
        ("gradients", True),
        ("metrics", True),
        ("noise", True),
        ("augmentation", True),
        ("privacy", True),
    ]
    assert all(finding.message and not finding.remedy for finding in findings)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (Frozen, "model", "no trainable parameters"),
        (Unreadable, "data", "KeyError"),
        (Empty, "data", "no records"),
        (NotFinite, "data", "NaN or infinite"),
        (WrongWidth, "loss", "RuntimeError"),
        (Reduced, "loss", "the loss of 10 records has the shape []"),
        (Unbounded, "loss", "NaN or infinite"),
        (HalfUsed, "gradients", "no gradient reaches unused.weight, unused.bias"),
        (NoNumber, "metrics", "no finite numbers: accuracy"),
        (OneForAll, "noise", "accuracy of 10 records has the shape []"),
        (BeyondItsBound, "noise", "age has values outside [0, 30]"),
        (Standardised, "noise", "size of a record depends on the other records"),
        (TwoMeanings, "noise", "accuracy is 1 on average, and only 0."),
        (Cropping, "augmentation", "augment() changes"),
        (BatchNormed, "privacy", "BatchNorm1d"),
        (Coupled, "privacy", "others' losses"),
    ],
)
def test_each_fault_is_found_and_named(
    kind: type[Sound], name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [finding for finding in check(kind, monkeypatch) if not finding.ok]
    assert failed[0].name == name
    assert message in failed[0].message
    assert failed[0].remedy


def test_what_needs_an_earlier_check_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.name for finding in check(Unreadable, monkeypatch)][-1] == "data"
    assert [finding.name for finding in check(Frozen, monkeypatch)] == ["task", "model"]


def test_wrong_options_and_unknown_tasks_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    (unknown,) = check_task("tabluar", {})
    assert not unknown.ok
    assert "no such task" in unknown.message
    (wrong,) = check(Sound, monkeypatch, depth=3)
    assert not wrong.ok
    assert "depth: unknown key" in wrong.message


def test_without_a_sample_the_model_alone_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanse.task._task_type", lambda name: Sound)
    assert [finding.name for finding in check_task("sound", {})] == ["task", "model", "weights"]


def test_the_jobs_own_loss_is_the_one_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanse.task._task_type", lambda name: Sound)

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    failed = [f for f in check_task("sound", {}, Path("sample.csv"), mean) if not f.ok]
    assert [finding.name for finding in failed] == ["loss"]


def test_a_missing_client_is_told_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (failed,) = [finding for finding in check(Sound, monkeypatch) if not finding.ok]
    assert failed.name == "privacy"
    assert "not checked" in failed.message
    assert "hanse[client]" in failed.remedy

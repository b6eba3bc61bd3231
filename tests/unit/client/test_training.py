"""Local training: plain rounds against loops of torch's own, private ones against their plan."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hanse import evaluation
from hanse.errors import (
    CoupledLossError,
    DataError,
    DivergedError,
    TaskError,
    UnprovableModelError,
)
from hanse.job import Optimizer
from hanse.task import Examples, NoOptions, Task
from hanse_client import training
from hanse_client.judging import exact_metrics
from hanse_client.plan import LocalPlan, PrivateSteps
from hanse_client.privacy import engine as private
from hanse_client.privacy.settings import EngineSettings, Precision
from hanse_client.site import Policy
from hanse_client.steps import record_loss
from hanse_client.training import Trainer
from torch import Tensor, nn

from tests.devices import DEVICES

CPU = torch.device("cpu")


class Digits(Task[NoOptions]):
    """A perceptron with a layer of dropout, on six features and three classes."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 3))

    def read(self, source: Path) -> Examples:
        raise NotImplementedError

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": float((outputs.argmax(dim=1) == targets).double().mean())}

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        (features,) = inputs
        return (features + torch.randn(features.shape, generator=generator),)


class Line(Digits):
    """A linear regression without any randomness."""

    def model(self) -> nn.Module:
        return nn.Linear(6, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"records": float(len(outputs))}


class Counting(Line):
    """State that is not of floats: a counter, a mask, and half precision beside them."""

    def model(self) -> nn.Module:
        class Model(nn.Module):
            calls: Tensor
            mask: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(6, 1)
                self.register_buffer("calls", torch.tensor(0))
                self.register_buffer("mask", torch.tensor([True, False]))

            def forward(self, inputs: Tensor) -> Tensor:
                self.calls += int(self.training)
                return self.layer(inputs)  # type: ignore[no-any-return]

        return Model()


class Normalised(Digits):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


class Reduced(Digits):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


def records(count: int = 50, *, classes: bool = True) -> Examples:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, 6, generator=generator)
    labels = (features[:, 0] > 0).long() + (features[:, 1] > 0).long()
    return Examples((features,), labels if classes else features.sum(dim=1))


def a_plan(*, private: bool = False, **changes: Any) -> LocalPlan:
    privacy = PrivateSteps(sampling_rate=0.2, noise_multiplier=1.0, clipping_norm=1.0)
    settings: dict[str, Any] = {
        "steps": 6,
        "batch_size": 10,
        "privacy": privacy if private else None,
        "optimizer": Optimizer(),
        "lr": 0.1,
        "loss": "task",
        "augment": False,
        "proximal_mu": 0.0,
        "seed": 11,
    }
    return LocalPlan(**(settings | changes))


def a_trainer(kind: type[Digits] = Digits) -> Trainer:
    return Trainer(kind(NoOptions()), CPU)


def weights_of(kind: type[Digits]) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return kind(NoOptions()).model().state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# --- without privacy ------------------------------------------------------------------------


def by_hand(
    optimizer: torch.optim.Optimizer, model: nn.Module, examples: Examples, plan: LocalPlan
) -> float:
    """The plan's loop, written out: shuffled epochs from the plan's seed, mean of squares."""
    order = torch.Generator().manual_seed(plan.seed)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    steps, total, drawn = 0, 0.0, 0
    while True:
        shuffled = torch.randperm(len(examples), generator=order)
        for first in range(0, len(examples), plan.batch_size):
            if steps == plan.steps:
                return total / drawn
            batch = examples.take(shuffled[first : first + plan.batch_size])
            losses = (model(*batch.inputs)[:, 0] - batch.targets).square()
            loss = losses.mean()
            for parameter, origin in zip(model.parameters(), start, strict=True):
                loss = loss + plan.proximal_mu / 2 * (parameter - origin).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps, total, drawn = (
                steps + 1,
                total + float(losses.detach().sum()),
                drawn + len(batch),
            )


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"name": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.05)),
        (
            {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
        ),
        ({"name": "adam"}, lambda p: torch.optim.Adam(p, lr=0.05)),
        (
            {"name": "adamw", "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
        ),
        (
            {"name": "rmsprop", "momentum": 0.5},
            lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.5),
        ),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "rmsprop"],
)
@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_a_plain_round_is_torchs_own_loop(settings: dict[str, Any], theirs: Any, mu: float) -> None:
    examples, weights = records(24, classes=False), weights_of(Line)
    plan = a_plan(optimizer=Optimizer(**settings), lr=0.05, proximal_mu=mu, steps=7)
    result = a_trainer(Line).train(weights, examples, plan)

    model = Line(NoOptions()).model()
    model.load_state_dict(weights)
    loss = by_hand(theirs(model.parameters()), model, examples, plan)
    for name, local in model.state_dict().items():
        assert torch.allclose(result.update[name], local - weights[name], atol=1e-6)
    assert result.train_loss == pytest.approx(loss, rel=1e-5)
    assert result.clipped_fraction is None
    assert result.steps == 7
    norm = math.sqrt(sum(float(u.double().square().sum()) for u in result.update.values()))
    assert result.update_norm == pytest.approx(norm)


def test_a_plain_round_is_a_function_of_its_arguments_and_disturbs_nothing() -> None:
    weights, examples = weights_of(Digits), records()
    trainer = a_trainer()
    plan = a_plan(augment=True)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = trainer.train(weights, examples, plan).update
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert same(trainer.train(weights, examples, plan).update, first)
    assert same(a_trainer().train(weights, examples, plan).update, first)
    assert not same(trainer.train(weights, examples, a_plan(augment=True, seed=12)).update, first)


def evaluated(trainer: Trainer, weights: dict[str, Tensor], examples: Examples) -> dict[str, float]:
    """Every metric of the weights, as it is."""
    outputs = trainer.predict(weights, examples)
    return exact_metrics(trainer.task, outputs, examples.targets, Policy(release_exact=("*",)))


def test_a_round_after_an_evaluation_is_as_the_one_before() -> None:
    weights, examples, trainer = weights_of(Digits), records(), a_trainer()
    before = trainer.train(weights, examples, a_plan()).update
    evaluated(trainer, weights, examples)
    assert same(trainer.train(weights, examples, a_plan()).update, before)


def test_a_private_round_after_an_evaluation_still_learns_from_the_records() -> None:
    privacy = PrivateSteps(sampling_rate=1.0, noise_multiplier=1e-9, clipping_norm=1.0)
    trainer, weights = a_trainer(Line), weights_of(Line)
    evaluated(trainer, weights, records(classes=False))
    plan = a_plan(privacy=privacy)
    assert trainer.train(weights, records(classes=False), plan).update_norm > 0.01


def test_making_a_trainer_leaves_torchs_randomness_alone() -> None:
    state = torch.random.get_rng_state()
    assert tuple(a_trainer().model.state) == tuple(weights_of(Digits))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_augmentation_happens_only_where_the_plan_says_so() -> None:
    weights, examples = weights_of(Digits), records()
    plain = a_trainer().train(weights, examples, a_plan()).update
    assert not same(a_trainer().train(weights, examples, a_plan(augment=True)).update, plain)


def test_training_learns() -> None:
    weights, examples, trainer = weights_of(Digits), records(300), a_trainer()
    before = evaluated(trainer, weights, examples)
    update = trainer.train(weights, examples, a_plan(steps=600, lr=0.3)).update
    after = evaluated(trainer, {name: weights[name] + update[name] for name in weights}, examples)
    assert after["loss"] < before["loss"] / 2
    assert after["accuracy"] > 0.8 > before["accuracy"] + 0.2


def test_the_update_keeps_each_weights_dtype() -> None:
    weights = weights_of(Counting) | {"layer.bias": torch.zeros(1, dtype=torch.bfloat16)}
    update = a_trainer(Counting).train(weights, records(classes=False), a_plan()).update
    assert {name: change.dtype for name, change in update.items()} == {
        "calls": torch.int64,
        "mask": torch.bool,
        "layer.weight": torch.float32,
        "layer.bias": torch.bfloat16,
    }
    assert int(update["calls"]) == 6
    assert not update["mask"].any()
    assert float(update["layer.bias"]) != 0.0


def test_a_batch_normalised_model_trains_where_no_privacy_is_asked_for() -> None:
    update = a_trainer(Normalised).train(weights_of(Normalised), records(), a_plan()).update
    assert int(update["1.num_batches_tracked"]) == 6


def test_a_diverged_round_is_an_error_and_the_next_is_not() -> None:
    trainer, weights, examples = a_trainer(Line), weights_of(Line), records(classes=False)
    with pytest.raises(DivergedError):
        trainer.train(weights, examples, a_plan(lr=1e12, steps=30))
    assert trainer.train(weights, examples, a_plan()).update_norm > 0.0


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(TaskError, match="do not fit the task's model"):
        a_trainer(Digits).train(weights_of(Line), records(), a_plan())
    with pytest.raises(TaskError, match="do not fit the task's model"):
        evaluated(a_trainer(Digits), weights_of(Line), records())


# --- losses ---------------------------------------------------------------------------------


def test_the_job_may_name_the_loss() -> None:
    digits, line = Digits(NoOptions()), Line(NoOptions())
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = nn.functional.cross_entropy(outputs, targets, reduction="none")
    assert torch.equal(record_loss("task", digits)(outputs, targets), expected)
    assert torch.equal(record_loss("cross_entropy", line)(outputs, targets), expected)
    dense = nn.functional.cross_entropy(
        torch.ones(2, 3, 4), torch.zeros(2, 4).long(), reduction="none"
    )
    found = record_loss("cross_entropy", line)(torch.ones(2, 3, 4), torch.zeros(2, 4).long())
    assert torch.allclose(found, dense.mean(dim=1))


def test_mean_squares_compare_each_record_with_its_own_target() -> None:
    squares = record_loss("mse", Line(NoOptions()))
    outputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 0.0, 0.0])
    assert squares(outputs, targets).tolist() == [0.0, 4.0, 9.0]
    assert squares(torch.ones(2, 4), torch.zeros(2, 4)).tolist() == [1.0, 1.0]
    with pytest.raises(TaskError, match=r"shape \(3,\) a record do not fit .* \(\)"):
        squares(torch.ones(2, 3), torch.zeros(2))


@pytest.mark.parametrize("privately", [False, True])
def test_a_loss_without_one_value_a_record_is_refused(privately: bool) -> None:
    with pytest.raises(CoupledLossError, match=r"not of shape \(B,\)$"):
        a_trainer(Reduced).train(weights_of(Digits), records(), a_plan(private=privately))


# --- with privacy ---------------------------------------------------------------------------


def test_a_private_round_reports_what_it_did() -> None:
    result = a_trainer().train(weights_of(Digits), records(200), a_plan(private=True, steps=20))
    assert list(result.update) == list(weights_of(Digits))
    assert all(bool((change != 0).any()) for change in result.update.values())
    assert result.train_loss is not None
    assert 0.0 < result.train_loss < 5.0
    assert result.clipped_fraction is not None
    assert 0.0 < result.clipped_fraction <= 1.0
    assert result.steps == 20
    assert result.seconds > 0.0


def test_no_seed_decides_a_private_round() -> None:
    weights, examples, trainer = weights_of(Digits), records(), a_trainer()
    updates = []
    for _ in range(2):
        torch.manual_seed(0)
        state = torch.random.get_rng_state()
        updates.append(trainer.train(weights, examples, a_plan(private=True)).update)
        assert torch.equal(torch.random.get_rng_state(), state)
    assert not same(*updates)


def test_private_augmentation_and_dropout_do_not_come_from_the_plans_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = []

    def spying(self: Digits, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Any:
        seeds.append((generator.initial_seed(), torch.initial_seed()))
        return inputs

    monkeypatch.setattr(Digits, "augment", spying)
    plan = a_plan(private=True, augment=True)
    a_trainer().train(weights_of(Digits), records(), plan)
    assert seeds
    assert not any(plan.seed in pair for pair in seeds)
    seeds.clear()
    a_trainer().train(weights_of(Digits), records(), a_plan(augment=True))
    assert set(seeds) == {(plan.seed, plan.seed)}


def test_every_planned_step_is_taken_and_none_is_skipped_for_being_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    call = private.DpEngine.__call__

    def counting(self: private.DpEngine, batch: Examples) -> Any:
        taken.append(len(batch))
        return call(self, batch)

    monkeypatch.setattr(private.DpEngine, "__call__", counting)
    privacy = PrivateSteps(sampling_rate=1e-12, noise_multiplier=1.0, clipping_norm=1.0)
    plan = a_plan(privacy=privacy, steps=5, batch_size=1, lr=1.0)
    result = a_trainer().train(weights_of(Digits), records(), plan)
    assert taken == [0] * 5
    assert (result.train_loss, result.clipped_fraction) == (None, None)
    weights = sum(change.numel() for change in result.update.values())
    assert result.update_norm == pytest.approx((5 * weights) ** 0.5, rel=0.4)


def test_the_noise_of_a_round_does_not_tell_the_number_of_records() -> None:
    privacy = PrivateSteps(sampling_rate=1.0, noise_multiplier=1000.0, clipping_norm=1.0)
    norms = [
        a_trainer()
        .train(weights_of(Digits), records(count), a_plan(privacy=privacy, lr=1e-3))
        .update_norm
        for count in (10, 1000)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.5)


def test_one_record_moves_a_round_by_the_clipping_norm_at_most() -> None:
    privacy = PrivateSteps(sampling_rate=1.0, noise_multiplier=1e-9, clipping_norm=0.5)
    plan = a_plan(privacy=privacy, steps=1, lr=1.0, batch_size=4)
    examples, weights = records(20, classes=False), weights_of(Line)
    whole = a_trainer(Line).train(weights, examples, plan).update
    for removed in range(20):
        rest = examples.take(torch.tensor([i for i in range(20) if i != removed]))
        without = a_trainer(Line).train(weights, rest, plan).update
        moved = math.sqrt(sum(float((whole[n] - without[n]).square().sum()) for n in whole))
        assert moved <= 0.5 / 4 * (1 + 1e-4)


def test_what_cannot_be_proved_is_refused_before_any_record_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "poisson_batches", lambda *_: pytest.fail("a batch was drawn"))
    plan = a_plan(private=True)
    with pytest.raises(UnprovableModelError, match="BatchNorm1d"):
        a_trainer(Normalised).train(weights_of(Normalised), records(), plan)
    with pytest.raises(CoupledLossError):
        a_trainer(Reduced).check(records(), plan)
    a_trainer(Reduced).check(records(), a_plan())


def test_the_checks_run_once_for_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(training, "check_per_example", lambda *_: checked.append(1))
    trainer = a_trainer()
    for loss in ("task", "task", "cross_entropy"):
        trainer.check(records(), a_plan(private=True, loss=loss))
    assert len(checked) == 2


def test_a_buffer_never_leaves_a_private_round_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, examples = a_trainer(Counting), records(classes=False)
    with pytest.raises(UnprovableModelError, match="buffer 'calls' changes"):
        trainer.train(weights_of(Counting), examples, a_plan(private=True))
    monkeypatch.setattr(trainer, "check", lambda *_: None)  # should the check ever miss one
    privacy = PrivateSteps(sampling_rate=1.0, noise_multiplier=1.0, clipping_norm=1.0)
    with pytest.raises(UnprovableModelError, match="'calls' changed"):
        trainer.train(weights_of(Counting), examples, a_plan(privacy=privacy))


# --- evaluation -----------------------------------------------------------------------------


def test_evaluation_is_the_mean_over_all_records_without_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples, weights = records(), weights_of(Digits)
    model = Digits(NoOptions()).model().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        outputs = model(*examples.inputs)
    expected = {
        "loss": float(nn.functional.cross_entropy(outputs, examples.targets)),
        "accuracy": float((outputs.argmax(dim=1) == examples.targets).double().mean()),
    }
    trainer = a_trainer()
    assert evaluated(trainer, weights, examples) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 7)
    trainer.train(weights, examples, a_plan())
    assert evaluated(trainer, weights, examples) == pytest.approx(expected, abs=1e-6)


def test_evaluation_on_nothing_or_with_nothing_finite_is_an_error() -> None:
    with pytest.raises(DataError, match="no records"):
        evaluated(a_trainer(), weights_of(Digits), records(0))
    endless = {name: weight * torch.inf for name, weight in weights_of(Digits).items()}
    with pytest.raises(DivergedError):
        evaluated(a_trainer(), endless, records())


def test_what_fits_is_measured_once_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def fit(*told: Any) -> int:
        measured.append(told)
        return 100

    monkeypatch.setattr(private, "records_that_fit", fit)
    trainer, weights = a_trainer(), weights_of(Digits)
    for _ in range(3):
        trainer.train(weights, records(300), a_plan(private=True, steps=10))
    assert len(measured) == 1


# --- on each device that there is --------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("privately", [False, True])
def test_a_round_on_a_device(device: str, precision: Precision, privately: bool) -> None:
    task = Digits(NoOptions())
    trainer = Trainer(task, torch.device(device), engine=EngineSettings(precision=precision))
    weights, examples = weights_of(Digits), records(300)
    plan = a_plan(private=privately, steps=50)
    result = trainer.train(weights, examples, plan)
    assert {change.device.type for change in result.update.values()} == {"cpu"}
    assert {change.dtype for change in result.update.values()} == {torch.float32}
    assert result.update_norm > 0.0
    assert privately or same(trainer.train(weights, examples, plan).update, result.update)
    assert evaluated(trainer, weights, examples)["loss"] > 0.0


@pytest.mark.parametrize("device", DEVICES)
def test_rounds_of_all_records_and_next_to_no_noise_end_alike(device: str) -> None:
    plan, examples, weights = a_plan(lr=0.1), records(300, classes=False), weights_of(Line)
    steps = PrivateSteps(sampling_rate=1.0, noise_multiplier=1e-9, clipping_norm=1.0)
    plan = replace(plan, steps=4, privacy=steps)
    trainers = [
        Trainer(Line(NoOptions()), torch.device(device), engine=EngineSettings(graphs=graphs))
        for graphs in (True, False)
    ]
    updates = [
        torch.cat(
            [each.flatten() for each in trainer.train(weights, examples, plan).update.values()]
        )
        for trainer in trainers
        for _ in range(3)
    ]
    for update in updates[1:]:
        assert float((update - updates[0]).norm()) <= 1e-4 * float(updates[0].norm())


@pytest.mark.parametrize("device", DEVICES)
def test_a_round_in_bfloat16_is_nearly_that_of_float32(device: str) -> None:
    examples = records(300, classes=False)
    found = []
    for precision in get_args(Precision):
        engine = EngineSettings(precision=precision)
        trainer = Trainer(Line(NoOptions()), torch.device(device), engine=engine)
        found.append(trainer.train(weights_of(Line), examples, a_plan(lr=0.01)))
    exact, lowered = (
        torch.cat([change.flatten() for change in each.update.values()]) for each in found
    )
    assert 1e-5 < float((exact - lowered).norm() / exact.norm()) < 0.05
    assert found[0].train_loss == pytest.approx(found[1].train_loss, rel=0.01)

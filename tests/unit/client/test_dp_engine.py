"""The engine against loops over single records, and its noise against its distribution."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hanse.task import Examples
from hanse_client.plan import PrivateSteps
from hanse_client.privacy import engine as private
from hanse_client.privacy import memory
from hanse_client.privacy.backends import BACKENDS
from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.memory import records_that_fit
from hanse_client.privacy.noise import NoiseSource
from hanse_client.privacy.settings import BackendName
from hanse_client.steps import RecordLoss, proximal_pull, trainable
from torch import Tensor, nn


class Unused(nn.Module):
    """A model with a trainable layer that no record reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs).tanh())  # type: ignore[no-any-return]


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.LayerNorm(16), nn.Linear(16, 3),
    ),
    "frozen": frozen,
    "unused": Unused,
    "tied": Tied,
}  # fmt: skip


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets[:, None]).square().sum(dim=1)


def nothing(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss without gradients: what is left of a step is noise."""
    return 0.0 * outputs.sum(dim=1)


LOSSES = {"cross_entropy": cross_entropy, "squared": squared}


def records(count: int) -> Examples:
    generator = torch.Generator().manual_seed(1)
    return Examples(
        (torch.randn(count, 6, generator=generator),),
        torch.randint(0, 3, (count,), generator=generator),
    )


def make(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MODELS[kind]()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1).clone() for parameter in trainable(model)])


def movement(
    model: nn.Module,
    loss: RecordLoss,
    batches: list[Examples],
    *,
    noise_multiplier: float = 0.0,
    clipping_norm: float = 0.5,
    batch_size: int = 10,
    mu: float = 0.0,
    noise: NoiseSource | None = None,
    physical: int | None = None,
    backend: BackendName = "auto",
) -> tuple[Tensor, int]:
    """What steps of SGD with lr 1 subtract from the weights, and how many records were clipped."""
    model = copy.deepcopy(model)
    before = flat(model)
    privacy = PrivateSteps(
        sampling_rate=0.1, noise_multiplier=noise_multiplier, clipping_norm=clipping_norm
    )
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    pull = proximal_pull(trainable(model), mu)
    with DpEngine(
        model,
        loss,
        optimizer,
        privacy,
        batch_size=batch_size,
        pull=pull,
        noise=noise,
        physical_batch=physical,
        backend=backend,
    ) as engine:
        clipped = sum(int(engine(batch).clipped) for batch in batches)
    return before - flat(model), clipped


def gradients(model: nn.Module, loss: RecordLoss, batch: Examples) -> Tensor:
    """The gradient of each record, (B, P), each from a backward pass of its own."""
    rows = []
    for i in range(len(batch)):
        one = batch.take(torch.tensor([i]))
        parts = torch.autograd.grad(
            loss(model(*one.inputs), one.targets).sum(), trainable(model), materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def clipped_sum(rows: Tensor, clipping_norm: float) -> Tensor:
    bound = Clipping(clipping_norm).bound
    return sum(
        (row * min(1.0, bound / float(row.norm())) for row in rows),
        start=torch.zeros_like(rows[0]),
    )


@pytest.mark.parametrize("physical", [256, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_clipped_sum_is_that_of_a_loop_over_records(
    kind: str, loss: str, physical: int
) -> None:
    model, batch = make(kind), records(11)
    rows = gradients(model, LOSSES[loss], batch)
    median = float(rows.norm(dim=1).median()) * 1.003  # clips five of the eleven
    moved, clipped = movement(
        model, LOSSES[loss], [batch], clipping_norm=median, batch_size=10, physical=physical
    )
    assert torch.allclose(moved * 10, clipped_sum(rows, median), rtol=1e-4, atol=1e-5)
    assert clipped == 5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", MODELS)
def test_leaving_out_one_record_moves_the_sum_by_the_clipping_norm_at_most(
    kind: str, loss: str
) -> None:
    model, batch, norm = make(kind), records(9), 0.3
    whole = movement(model, LOSSES[loss], [batch], clipping_norm=norm, batch_size=1)[0]
    for removed in range(9):
        rest = batch.take(torch.tensor([i for i in range(9) if i != removed]))
        without = movement(model, LOSSES[loss], [rest], clipping_norm=norm, batch_size=1)[0]
        assert float((whole - without).norm()) <= norm * (1 + 1e-5)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_a_record_without_a_finite_gradient_tells_nothing(value: float) -> None:
    model, batch = make("perceptron"), records(9)
    inputs = batch.inputs[0].clone()
    inputs[4] = value
    rest = batch.take(torch.tensor([i for i in range(9) if i != 4]))
    poisoned = Examples((inputs,), batch.targets)
    with_it, clipped = movement(model, squared, [poisoned], clipping_norm=0.3)
    without, clipped_without = movement(model, squared, [rest], clipping_norm=0.3)
    assert torch.allclose(with_it, without, atol=1e-7)
    assert clipped == clipped_without + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_batch_goes_through_in_parts_that_fit(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def spy(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(targets))
        return cross_entropy(outputs, targets)

    model, batch = make("perceptron"), records(100)
    whole, clipped = movement(model, spy, [batch], physical=100, backend=backend)
    sizes.clear()
    monkeypatch.setattr(private, "records_that_fit", lambda *_: 40)
    movement(model, spy, [batch, batch], backend=backend)
    assert sizes == [8, 40, 40, 12, 40, 40, 20]
    sizes.clear()
    monkeypatch.setattr(private, "records_that_fit", lambda *_: 1)
    alone, clipped_alone = movement(model, spy, [batch], backend=backend)
    assert sizes == [8, *[1] * 92]
    assert torch.allclose(whole, alone, rtol=1e-5, atol=1e-6)
    assert clipped == clipped_alone


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_fits_is_what_a_part_kept_of_each_record(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, int]] = []

    def fit(records: int, saved: int, held: int, _: torch.device) -> int:
        told.append((records, saved, held))
        return 1

    monkeypatch.setattr(private, "records_that_fit", fit)
    model = nn.Sequential(nn.Linear(6, 1000), nn.Tanh(), nn.Linear(1000, 3))
    movement(model, cross_entropy, [records(20)], backend=backend)
    ((count, saved, held),) = told
    assert count == 8
    assert 8 * 4 * 1000 <= saved <= 8 * 4 * 2100  # the output of tanh, and little else
    held_at_least = {"bookkeeping": 1000, "ghost": 0, "hooks": 10_003}[backend]
    assert 8 * 4 * held_at_least <= held <= 8 * 4 * (held_at_least + 2100)
    cpu = torch.device("cpu")
    assert records_that_fit(8, 2**20, 2**21, cpu) == 2**30 * 8 // 2**22
    assert records_that_fit(8, 2**40, 0, cpu) == 1


def test_on_a_gpu_a_quarter_of_what_is_free_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, free, total = torch.device("cuda:0"), 2**34, 2**36
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**33)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**32)
    assert records_that_fit(8, 2**20, 2**21, gpu) == (2**34 + 2**32) // 4 * 8 // 2**22


@pytest.mark.parametrize("physical", [1, 7, 8, 20, 100])
def test_no_part_grows_beyond_what_may_go_through_at_once(
    physical: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "FEW_SIZES", {"cpu"})
    sizes = []

    def spy(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(targets))
        return cross_entropy(outputs, targets)

    model, batch = make("perceptron"), records(219)
    movement(model, spy, [batch], physical=physical)
    assert max(sizes) <= physical
    assert sum(sizes) <= 219 * 9 / 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_that_does_not_fit_is_taken_in_halves(backend: BackendName) -> None:
    sizes = []

    def crowded(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(targets))
        if len(targets) > 6:
            raise torch.OutOfMemoryError("no room")
        return cross_entropy(outputs, targets)

    model, batch = make("perceptron"), records(20)
    whole, clipped = movement(model, cross_entropy, [batch], physical=20, backend=backend)
    parted, clipped_parted = movement(model, crowded, [batch], physical=20, backend=backend)
    assert sizes == [20, 10, 5, 5, 5, 5]
    assert torch.allclose(whole, parted, rtol=1e-5, atol=1e-6)
    assert clipped == clipped_parted
    with pytest.raises(torch.OutOfMemoryError):
        movement(model, out_of_memory, [batch], physical=20, backend=backend)


def out_of_memory(outputs: Tensor, targets: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("no room at all")


def test_the_divisor_is_the_nominal_batch_size_whatever_the_batch() -> None:
    model = make("perceptron")
    for count in (1, 4, 25):
        batch = records(count)
        moved, _ = movement(model, cross_entropy, [batch], batch_size=20)
        total = clipped_sum(gradients(model, cross_entropy, batch), 0.5)
        assert torch.allclose(moved, total / 20, rtol=1e-4, atol=1e-6)


WIDE = nn.Linear(6, 40_000, bias=False)  # 240,000 weights


@pytest.mark.parametrize("count", [0, 7])
def test_one_logical_step_gets_noise_once_with_the_deviation_of_the_charge(
    count: int,
) -> None:
    moved, _ = movement(
        WIDE,
        nothing,
        [records(count)],
        noise_multiplier=1.7,
        clipping_norm=0.6,
        batch_size=5,
        physical=2,
    )
    noise = moved.double() * 5 / (1.7 * 0.6)
    n = len(noise)
    assert abs(float(noise.mean())) < 6 / n**0.5
    assert abs(float(noise.var()) - 1.0) < 6 * (2 / n) ** 0.5
    assert abs(float(noise.pow(4).mean()) - 3.0) < 6 * (96 / n) ** 0.5


def test_noise_never_repeats_over_steps_and_rounds_whatever_torch_is_seeded_with() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        one = movement(WIDE, nothing, [records(0)], noise_multiplier=1.0)[0]
        torch.manual_seed(0)
        two = movement(WIDE, nothing, [records(0)] * 2, noise_multiplier=1.0)[0]
        draws += [one, two]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert float(correlation.abs().max()) < 6 / len(draws[0]) ** 0.5
    assert float(draws[1].var() / draws[0].var()) == pytest.approx(2.0, abs=0.05)


def test_every_trainable_weight_gets_noise_and_no_frozen_one() -> None:
    for kind in ("unused", "frozen", "tied"):
        model = make(kind)
        moved, _ = movement(model, cross_entropy, [records(3)], noise_multiplier=1.0)
        assert bool((moved != 0.0).all())
    model = copy.deepcopy(make("frozen"))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    movement(model, cross_entropy, [records(3)], noise_multiplier=1.0)
    assert len(before) == 2
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in before.items())


class KnownNoise:
    """The same normals again for each instance."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(5)

    def standard_normals(self, count: int) -> Tensor:
        return torch.randn(count, dtype=torch.float64, generator=self._generator)


def test_fedprox_pulls_after_the_noise_by_its_closed_form() -> None:
    model, mu = make("perceptron"), 30.0
    runs = {
        (count, pulled): movement(
            model,
            nothing,
            [records(4)] * count,
            noise_multiplier=1.0,
            mu=mu if pulled else 0.0,
            noise=KnownNoise(),
        )[0]
        for count in (1, 2)
        for pulled in (False, True)
    }
    assert torch.equal(runs[1, True], runs[1, False])  # nothing to pull back from at first
    # The first step is undone mu times over in the second, unclipped and undivided.
    expected = runs[2, False] - mu * runs[1, False]
    assert torch.allclose(runs[2, True], expected, rtol=1e-4, atol=1e-4)
    assert float((mu * runs[1, False]).norm()) > 10 * 0.5 / 10


def test_the_names_of_the_state_stay_and_the_hooks_go() -> None:
    model = make("convolution")
    names = list(model.state_dict())
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    privacy = PrivateSteps(sampling_rate=0.1, noise_multiplier=1.0, clipping_norm=1.0)
    with DpEngine(
        model, cross_entropy, optimizer, privacy, batch_size=2, pull=lambda: None
    ) as engine:
        engine(records(2))
        assert list(model.state_dict()) == names
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())

"""What the guarantee of clipping rests on, by each backend, on each device that there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, get_args

import pytest
import torch
from hanse.errors import UnprovableModelError
from hanse.task import Examples
from hanse_client.plan import PrivateSteps
from hanse_client.privacy.backends import BACKENDS, make_backend
from hanse_client.privacy.bookkeeping.books import Books
from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.loop import looped_sum
from hanse_client.privacy.settings import BackendName, Precision
from hanse_client.steps import trainable
from torch import Tensor, nn

from tests.contract.dp_models import LOSSES, bent, by_backend, flat, known_randomness
from tests.devices import DEVICES


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.LayerNorm(16), nn.Linear(16, 3),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [perceptron, images])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_out_one_record_moves_the_sum_by_the_clipping_norm_at_most(
    backend: BackendName, device: str, loss: str, make: Callable[[], nn.Module]
) -> None:
    with known_randomness():
        model, batch, norm = make(), Examples((torch.randn(7, 6),), torch.rand(7) + 0.5), 0.05
    whole = flat(by_backend(backend, model, LOSSES[loss], norm, batch, device).sums)
    moves = []
    for removed in range(7):
        rest = batch.take(torch.tensor([i for i in range(7) if i != removed]))
        without = flat(by_backend(backend, model, LOSSES[loss], norm, rest, device).sums)
        moves.append(float((whole - without).norm()))
    assert max(moves) <= norm
    assert min(moves) >= 0.99 * norm  # all of them are clipped, and none is lost


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.inf, math.nan, 3e38])
@pytest.mark.parametrize("make", [perceptron, images])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_without_a_finite_gradient_adds_nothing(
    backend: BackendName, device: str, make: Callable[[], nn.Module], value: float
) -> None:
    with known_randomness():
        model, inputs, targets = make(), torch.randn(7, 6), torch.rand(7) + 0.5
    rest = torch.tensor([0, 1, 2, 3, 5, 6])
    without = by_backend(
        backend, model, bent, 0.3, Examples((inputs[rest],), targets[rest]), device
    )
    inputs[4] = value
    targets[4] = value
    found = by_backend(backend, model, bent, 0.3, Examples((inputs,), targets), device)
    assert bool(found.norms[4].isinf())
    assert torch.allclose(flat(found.sums), flat(without.sums), atol=1e-6)
    assert torch.equal(found.norms[rest].isinf(), without.norms.isinf())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_whose_parts_nearly_cancel_is_clipped_all_the_same(
    backend: BackendName, device: str
) -> None:
    """The rounding of its Gram matrices is larger than its gradient's squared norm."""
    model, norm = nn.Linear(64, 8, bias=False), 0.1
    with known_randomness():
        inputs = 1e3 * torch.randn(20, 1, 64).expand(20, 2, 64)

    def cancelling(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - (1 + 1e-4 * targets[:, None]) * outputs[:, 1]).sum(dim=1)

    targets = torch.linspace(0.0, 2.0, 20)
    for index in range(20):
        one = Examples((inputs[index : index + 1],), targets[index : index + 1])
        found = by_backend(backend, model, cancelling, norm, one, device)
        assert float(flat(found.sums).norm()) <= norm


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_products_of_tiny_and_huge_numbers_are_clipped_all_the_same(
    backend: BackendName, device: str
) -> None:
    """Where one factor's square is lost below float32's range, and the other's is near its end."""
    model, norm = nn.Linear(2000, 4, bias=False), 1e-4
    inputs = torch.full((2, 2000), 2.6e-23)
    batch = Examples((inputs,), torch.tensor([1e18, 1e12]))
    found = by_backend(backend, model, lambda o, t: o.sum(dim=1) * t, norm, batch, device)
    assert float(flat(found.sums).norm()) <= norm


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_the_weights_that_are_clipped_is_that_of_the_sum(
    backend: BackendName, device: str
) -> None:
    with known_randomness():
        model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3))
        batch = Examples((torch.randn(1, 6),), torch.ones(1))
        for _ in range(5):
            found = by_backend(backend, model, bent, 1e-3, batch, device)
            assert float(flat(found.sums).norm()) == pytest.approx(1e-3 * 0.999, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_batch_leaves_behind_does_not_enter_the_next(backend: BackendName) -> None:
    """A layer whose output is not always used, and one that is not always called."""

    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)
            self.turn = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.turn += 1
            unused = self.other(inputs) if self.turn != 3 else 0.0
            return self.one(inputs) + (unused if self.turn == 2 else 0.0)  # type: ignore[no-any-return]

    with known_randomness():
        model, batch = Fickle(), Examples((torch.randn(6, 6),), torch.rand(6))
    parts = [batch, batch.take(torch.arange(4)), batch]
    with closing(make_backend(backend, model, bent, Clipping(0.5))) as made:
        found = [flat(made.clipped_sum(part).sums) for part in parts]
    expected = [flat(looped_sum_at(turn, model, part)) for turn, part in enumerate(parts, start=1)]
    for total, loop in zip(found, expected, strict=True):
        assert torch.allclose(total, loop, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[0], found[2])
    assert bool(found[1][-21:].any())
    assert not bool(found[0][-21:].any())


def looped_sum_at(turn: int, model: Any, batch: Examples) -> tuple[Tensor, ...]:
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for index in range(len(batch)):
        model.turn = turn - 1
        one = looped_sum(model, bent, Clipping(0.5), batch.take(torch.tensor([index])))
        sums = [total + addend for total, addend in zip(sums, one.sums, strict=True)]
    return tuple(sums)


# --- passes in less than float32 ----------------------------------------------------------------


def texts() -> nn.Module:
    """With long enough records that all forms of gradients occur."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 48)), nn.Conv1d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU(),
        nn.Linear(48, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 8), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_clip_holds_to_the_last_bit_of_float32_after_imprecise_passes(
    precision: Precision, device: str
) -> None:
    """In bfloat16, or in what the process takes for float32: on a GPU in TF32."""
    with known_randomness():
        model, inputs, targets = texts(), torch.randn(12, 48), torch.rand(12) + 0.5
    model, inputs, targets = model.to(device), inputs.to(device), targets.to(device)
    with (
        lowered(device),
        closing(make_backend("bookkeeping", model, bent, Clipping(0.05), precision)) as backend,
    ):
        for index in range(12):
            one = Examples((inputs[index : index + 1],), targets[index : index + 1])
            found = backend.clipped_sum(one)
            assert all(total.dtype == torch.float32 for total in found.sums)
            assert 0.998 * 0.05 < float(flat(found.sums).norm()) <= 0.05
        together = backend.clipped_sum(Examples((inputs,), targets))
    exact = by_backend("bookkeeping", model, bent, 0.05, Examples((inputs,), targets), device)
    difference = float((flat(together.sums).cpu() - flat(exact.sums)).norm())
    imprecise = precision == "bfloat16" or device == "cuda"
    least = 1e-5 if imprecise else 0.0  # it was imprecise, and right
    assert least <= difference / float(flat(exact.sums).norm()) < 0.05


@pytest.mark.parametrize("backend", ["ghost", "hooks"])
def test_backends_that_exceed_the_clip_in_bfloat16_refuse_it(backend: BackendName) -> None:
    with pytest.raises(UnprovableModelError, match="in bfloat16") as refusal:
        make_backend(backend, perceptron(), bent, Clipping(1.0), "bfloat16")
    assert "engine.precision" in refusal.value.remedy


@contextmanager
def lowered(device: str) -> Iterator[Callable[[], tuple[str, str]]]:
    """A process that asks for products of float32 in less; yields what is asked for now."""
    backends: Any = torch.backends
    on_gpu = device == "cuda"
    matmul = backends.cuda.matmul if on_gpu else backends.mkldnn.matmul
    convolve = backends.cudnn.conv if on_gpu else backends.mkldnn.conv
    before = matmul.fp32_precision, convolve.fp32_precision
    matmul.fp32_precision = convolve.fp32_precision = low = "tf32" if on_gpu else "bf16"
    try:
        yield lambda: (matmul.fp32_precision, convolve.fp32_precision)
        assert (matmul.fp32_precision, convolve.fp32_precision) == (low, low)
    finally:
        matmul.fp32_precision, convolve.fp32_precision = before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_and_sums_are_of_float32_whatever_the_process_asks_for(
    backend: BackendName, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the backends whose passes make norms or sums, the passes too."""
    passed, made = [], []
    factors, enter = Clipping.factors, Books.enter

    with known_randomness():
        model, batch = images().to(device), Examples((torch.randn(3, 6),), torch.rand(3))
    privacy = PrivateSteps(sampling_rate=0.1, noise_multiplier=1.0, clipping_norm=1.0)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    with lowered(device) as asked:

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            passed.append(asked())
            return bent(outputs, targets)

        def spied(function: Callable[..., Any]) -> Callable[..., Any]:
            def spy(*args: Any) -> Any:
                made.append(asked())
                return function(*args)

            return spy

        monkeypatch.setattr(Clipping, "factors", spied(factors))
        monkeypatch.setattr(Books, "enter", spied(enter))
        with DpEngine(
            model, loss, optimizer, privacy, batch_size=3, pull=lambda: None, backend=backend
        ) as engine:
            engine(batch.to(torch.device(device)))
        asked_for = asked()
    exact = ("ieee", "ieee")
    assert set(made) == {exact}
    assert len(made) >= (1 + 4 if backend == "bookkeeping" else 1)  # its layers, one by one
    assert set(passed) == {asked_for if backend == "bookkeeping" else exact}

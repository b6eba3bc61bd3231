"""The noise is the cipher's, every value of it is used once, and it is what reaches the weights."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hanse.task import Examples
from hanse_client.plan import PrivateSteps
from hanse_client.privacy import noise as noises
from hanse_client.privacy.backends import BACKENDS
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.hooks import quiet
from hanse_client.privacy.noise import SecureNoise, box_muller, noised
from hanse_client.privacy.settings import BackendName
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from tests.devices import DEVICES


def known_entropy(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Makes the operating system's randomness known; the list is what it will have given."""
    given: list[bytes] = []

    def urandom(size: int) -> bytes:
        given.append(hashlib.shake_256(bytes([len(given)])).digest(size))
        return given[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    return given


def test_the_normals_are_those_of_the_cipher_by_box_and_muller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = known_entropy(monkeypatch)
    found = SecureNoise().standard_normals(2000).numpy()
    key, start = given
    assert (len(key), len(start)) == (32, 16)
    stream = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor().update(bytes(16_000))
    uniforms = (np.frombuffer(stream, dtype=np.uint64) & (2**52 - 1)) / 2**52
    radius, angle = np.sqrt(-2.0 * np.log(1.0 - uniforms[:1000])), 2.0 * np.pi * uniforms[1000:]
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("fraction", "largest"), [(0, 0.0), (2**52 - 1, math.sqrt(2.0 * 52 * math.log(2.0)))]
)
def test_the_ends_of_the_uniforms_give_finite_normals(
    fraction: int, largest: float, device: str
) -> None:
    normals = torch.empty(3, dtype=torch.float64, device=device)
    box_muller(torch.full((4,), fraction, device=device), normals)
    assert float(normals.abs().max()) == pytest.approx(largest)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 63, 64])
def test_as_many_as_asked_for_and_none_twice(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noises, "BLOCK", 8)
    source = SecureNoise()
    draws = torch.cat([source.standard_normals(count) for _ in range(3)])
    assert draws.shape == (3 * count,)
    assert draws.dtype == torch.float64
    assert len(set(draws.tolist())) == 3 * count


def test_what_was_drawn_is_not_overwritten_by_what_is_drawn_next() -> None:
    source = SecureNoise()
    first = source.standard_normals(100)
    kept = first.clone()
    source.standard_normals(100)
    assert torch.equal(first, kept)


def test_a_source_cannot_be_copied_or_sent_elsewhere() -> None:
    with pytest.raises(TypeError):
        copy.deepcopy(SecureNoise())
    with pytest.raises(TypeError):
        pickle.dumps(SecureNoise())


class Counting:
    """Not noise but 1, 2, 3, ...: shows where each draw went."""

    def __init__(self) -> None:
        self.drawn = 0

    def standard_normals(self, count: int) -> Tensor:
        self.drawn += count
        return torch.arange(self.drawn - count + 1, self.drawn + 1, dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 5, 6, 100])
def test_each_value_of_each_tensor_gets_a_draw_of_its_own(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noises, "BLOCK", block)
    shapes, source = [(3, 4), (2,), (), (5, 1, 2), (1,)], Counting()
    sums = [torch.full(shape, 7.0) for shape in shapes]
    noised(sums, 0.5, 4.0, source)
    count = sum(total.numel() for total in sums)
    assert source.drawn == count
    found = torch.cat([total.reshape(-1) for total in sums])
    assert torch.equal(found, (7.0 + 0.5 * torch.arange(1.0, count + 1)) / 4.0)


def test_sum_and_noise_are_rounded_once() -> None:
    """Noise that was rounded to float32 before would leave its own grid in the result."""

    class Fine:
        def standard_normals(self, count: int) -> Tensor:
            return torch.full((count,), 1.0 + 2.0**-24 + 2.0**-40, dtype=torch.float64)

    sums = [torch.full((4,), -1.0)]
    noised(sums, 1.0, 1.0, Fine())
    assert sums[0].tolist() == [2.0**-24 + 2.0**-40] * 4


class Recording:
    """The secure source, and all that it gave."""

    def __init__(self) -> None:
        self._source = SecureNoise()
        self.given: list[Tensor] = []

    def standard_normals(self, count: int) -> Tensor:
        self.given.append(self._source.standard_normals(count))
        return self.given[-1].clone()


def two_layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.sum((outputs - targets[:, None]).square(), dim=1)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_secure_noise_is_what_reaches_the_weights(backend: BackendName) -> None:
    model, source = two_layers(), Recording()
    before = weights(model).clone()
    privacy = PrivateSteps(sampling_rate=0.1, noise_multiplier=2.0, clipping_norm=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    nobody = Examples((torch.zeros(0, 6),), torch.zeros(0))
    with DpEngine(
        model, squared, optimizer, privacy, batch_size=4, pull=lambda: None,
        backend=backend, noise=source,
    ) as engine:  # fmt: skip
        for _ in range(3):
            engine(nobody)
    drawn = torch.cat(source.given).view(3, len(before))
    expected = before - (2.0 * 0.5 / 4) * drawn.sum(dim=0).float()
    assert torch.allclose(weights(model), expected, atol=1e-6)


class Opacus:
    """What Opacus would have drawn, in its order."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(3)
        self._shapes = [parameter.shape for parameter in two_layers().parameters()]

    def standard_normals(self, count: int) -> Tensor:
        draws = [torch.normal(0.0, 1.0, s, generator=self._generator) for s in self._shapes]
        return torch.cat([draw.flatten() for draw in draws]).double()


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_are_those_of_opacus_with_the_same_noise(backend: BackendName) -> None:
    """But for the margin that the engine clips below, which Opacus is given here."""
    torch.manual_seed(1)
    batches = [Examples((torch.randn(size, 6),), torch.rand(size)) for size in (7, 3, 0, 5)]
    ours, theirs = two_layers(), two_layers()
    privacy = PrivateSteps(sampling_rate=0.1, noise_multiplier=0.7, clipping_norm=0.9)
    with DpEngine(
        ours, squared, torch.optim.SGD(ours.parameters(), lr=0.1), privacy, batch_size=5,
        pull=lambda: None, backend=backend, noise=Opacus(), physical_batch=4,
    ) as engine:  # fmt: skip
        for batch in batches:
            engine(batch)
    optimizer = DPOptimizer(
        torch.optim.SGD(theirs.parameters(), lr=0.1),
        noise_multiplier=0.7 / 0.999,
        max_grad_norm=0.9 * 0.999,
        expected_batch_size=5,
        generator=torch.Generator().manual_seed(3),
    )
    wrapped = GradSampleModule(theirs, loss_reduction="mean")
    for batch in batches:
        optimizer.zero_grad()
        if len(batch) > 0:
            with quiet():
                torch.autograd.backward(squared(wrapped(*batch.inputs), batch.targets).mean())
        else:
            for parameter in theirs.parameters():
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)  # type: ignore[attr-defined]
        optimizer.step()
    assert torch.allclose(weights(ours), weights(theirs), atol=2e-5)

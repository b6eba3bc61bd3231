"""What every backend of private training promises, on every layer that it knows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hanse.errors import UnprovableModelError
from hanse.task import Examples
from hanse_client.privacy import memory
from hanse_client.privacy.backends import BACKENDS
from hanse_client.privacy.bookkeeping.backend import evened
from hanse_client.privacy.choice import choose_backend
from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.loop import looped_sum
from hanse_client.privacy.settings import BackendName
from hanse_client.steps import trainable
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.contract.dp_models import (
    ELSEWHERE,
    MODELS,
    RECORDS,
    Recurrent,
    Tokens,
    bent,
    by_backend,
    drawn,
    flat,
)
from tests.devices import DEVICES

SHAPES = settings(derandomize=True, deadline=None, max_examples=12, database=None)

PAIRS = [
    (backend, kind)
    for backend in BACKENDS
    for kind in MODELS
    if backend not in ELSEWHERE.get(kind, set())
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backend", "kind"), PAIRS)
@SHAPES
@given(data=st.data())
def test_clipped_sums_are_those_of_a_loop_over_the_records(
    backend: BackendName, kind: str, device: str, data: st.DataObject
) -> None:
    model, batch = drawn(kind, data)
    free = looped_sum(model, bent, Clipping(math.inf), batch)
    norm = float(free.norms.median()) * 1.01 + 1e-3  # clips two of the five
    state = list(model.state_dict())
    found = by_backend(backend, model, bent, norm, batch, device)
    expected = looped_sum(model, bent, Clipping(norm), batch)
    assert torch.allclose(found.norms, expected.norms, rtol=1e-4, atol=1e-5)
    total, loop = flat(found.sums), flat(expected.sums)
    assert float((total - loop).norm()) <= 1e-4 * float(loop.norm()) + 1e-6
    assert torch.allclose(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    assert [one.shape for one in found.sums] == [p.shape for p in trainable(model)]
    assert list(model.state_dict()) == state
    assert not any(layer._forward_hooks for layer in model.modules())
    assert not any("forward" in vars(layer) for layer in model.modules())


@pytest.mark.parametrize("value", [1.0, math.inf])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "transformers", "recurrent"])
@SHAPES
@given(data=st.data())
def test_records_that_even_a_batch_out_count_for_nothing(
    kind: str, value: float, data: st.DataObject
) -> None:
    model, batch = drawn(kind, data)
    batch.targets[-1] *= value  # the one that is repeated
    norm = float(looped_sum(model, bent, Clipping(math.inf), batch).norms.median()) + 1e-3
    plainly = by_backend("bookkeeping", model, bent, norm, batch)
    sizes = []

    def spied(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(targets))
        return bent(outputs, targets)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "FEW_SIZES", {"cpu"})
        patched.setattr(memory, "SIZES", 1)
        evenly = by_backend("bookkeeping", model, spied, norm, batch)
    assert sizes == [8]
    assert evenly.norms.shape == evenly.losses.shape == (RECORDS,)
    assert torch.allclose(evenly.norms, plainly.norms, rtol=1e-5)
    assert torch.allclose(flat(evenly.sums), flat(plainly.sums), rtol=1e-4, atol=1e-6)


def test_a_batch_grows_by_an_eighth_at_most_to_one_of_few_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "FEW_SIZES", {"cpu"})
    sizes = {
        count: len(evened(Examples((torch.zeros(count, 1),), torch.zeros(count))))
        for count in range(1, 1025)
    }
    assert all(count <= size <= count * 9 / 8 for count, size in sizes.items())
    assert len({size for count, size in sizes.items() if 512 <= count < 1024}) == 9
    assert [sizes[count] for count in (7, 8, 9, 17, 100, 257)] == [7, 8, 9, 18, 104, 288]


class Reflecting(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Flatten())


class Placed(nn.Module):
    """Positions without a dimension of records, as many as the records that are tried."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 3), nn.Embedding(9, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.words(tokens) + self.positions(torch.arange(4)))


FLOATS, TOKENS = torch.rand(RECORDS, 2, 4), torch.ones(RECORDS, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("model", "inputs", "chosen"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), FLOATS, BACKENDS),
        (Reflecting, FLOATS, ("bookkeeping",)),
        (lambda: Tokens(5, 3, padding=1), TOKENS, ("bookkeeping",)),
        (Recurrent, TOKENS, ("bookkeeping", "hooks")),
        (lambda: nn.Sequential(nn.InstanceNorm1d(2, affine=True)), FLOATS, ("ghost", "hooks")),
        (Placed, TOKENS, ()),
    ],
    ids=["linear", "reflecting", "padded", "tied", "instance_norm", "positions"],
)
def test_a_backend_is_chosen_only_if_it_is_right_about_the_model(
    model: Callable[[], nn.Module], inputs: Tensor, chosen: tuple[BackendName, ...]
) -> None:
    examples = Examples((inputs,), torch.rand(RECORDS))
    for backend in (*BACKENDS, "auto"):
        wanted = chosen if backend == "auto" else tuple({backend} & {*chosen})
        if wanted:
            found = choose_backend(model(), bent, examples, backend)
            assert found.backend == wanted[0]
            refused = BACKENDS[: BACKENDS.index(wanted[0])] if backend == "auto" else ()
            assert all(f"{name}: " in found.reason for name in refused)
        else:
            with pytest.raises(UnprovableModelError, match="cannot be had one by one"):
                choose_backend(model(), bent, examples, backend)

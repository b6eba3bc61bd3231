"""What passes that are recorded once and replayed promise: the same as passes that are made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from hanse.task import Examples
from hanse_client.plan import PrivateSteps
from hanse_client.privacy import memory
from hanse_client.privacy.bookkeeping.backend import BookkeepingBackend
from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.loop import looped_sum
from hanse_client.privacy.precision import exact_float32
from hanse_client.privacy.replays import CudaGraphs, Outside, Recorder, Replays, undrawn
from hanse_client.steps import trainable
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.contract.dp_models import ELSEWHERE, MODELS, bent, drawn, flat, known_randomness
from tests.devices import DEVICES

KINDS = [kind for kind in MODELS if "bookkeeping" not in ELSEWHERE.get(kind, set())]
SHAPES = settings(
    derandomize=True, deadline=None, max_examples=3, database=None, phases=[Phase.generate]
)
ON_EACH = pytest.mark.parametrize("device", DEVICES)


@dataclass
class Again:
    """Records on a processor: to do work again is to do it again."""

    room: int = 2**40
    waiting: bool = False
    drawing: bool = True
    records: list[int] = field(default_factory=list)

    @contextmanager
    def unwaiting(self) -> Iterator[None]:
        if self.waiting:
            raise RuntimeError("a wait")
        with nullcontext() if self.drawing else undrawn():
            yield

    def record(self, work: Callable[[], None]) -> Callable[[], object]:
        self.records.append(len(self.records))
        work()
        return work

    def randomness(self) -> Callable[[], None]:
        state = torch.get_rng_state()
        return lambda: torch.set_rng_state(state)


def replays_of(model: nn.Module, recorder: Recorder | None = None) -> Replays:
    tensors = [*model.parameters(), *model.buffers()]
    where = tensors[0].device
    if recorder is not None or where.type != "cuda":
        return Replays(tensors, lambda: recorder or Again())
    return Replays(tensors, lambda: CudaGraphs(where))


def bookkeeping(
    model: nn.Module, replays: Replays, norm: float = 0.5
) -> closing[BookkeepingBackend]:
    return closing(BookkeepingBackend(model, bent, Clipping(norm), replays=replays))


def perceptron(device: str) -> nn.Module:
    with known_randomness():
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)


def batch_of(records: int, device: str, seed: int = 0) -> Examples:
    made = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(records, 6, generator=made), torch.rand(records, generator=made)
    return Examples((inputs.to(device),), targets.to(device))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@ON_EACH
@pytest.mark.parametrize("kind", KINDS)
@SHAPES
@given(data=st.data())
def test_replays_are_the_passes_of_other_weights_and_other_records(
    kind: str, device: str, data: st.DataObject
) -> None:
    model, batch = drawn(kind, data)
    model, batch = model.to(device), batch.to(torch.device(device))
    norm = float(looped_sum(model, bent, Clipping(math.inf), batch).norms.median()) * 1.01 + 1e-3
    replays, twin = replays_of(model), deepcopy(model)  # the twin has no taps
    with (
        exact_float32(torch.device(device)),
        bookkeeping(model, replays, norm) as backend,
    ):
        for turn in range(4):
            with torch.no_grad():
                for parameter in (*model.parameters(), *twin.parameters()):
                    parameter.add_(0.01 * turn)
            batch.targets.mul_(0.9)
            order = torch.arange(len(batch), device=device).roll(turn)
            turned = batch.take(order)
            found = backend.clipped_sum(turned)
            expected = looped_sum(twin, bent, Clipping(norm), turned)
            assert torch.allclose(found.norms, expected.norms, rtol=1e-4, atol=1e-5)
            assert torch.allclose(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
            total, loop = flat(found.sums), flat(expected.sums)
            assert float((total - loop).norm()) <= 1e-4 * float(loop.norm()) + 1e-6
    assert (replays.obstacle, replays.replayed) == (None, 3)


@ON_EACH
def test_parts_of_a_batch_are_added_up(device: str) -> None:
    model, batch = perceptron(device), batch_of(12, device)
    expected = looped_sum(model, bent, Clipping(0.5), batch)
    steps = PrivateSteps(sampling_rate=0.1, noise_multiplier=0.0, clipping_norm=0.5)
    before = [parameter.detach().clone() for parameter in trainable(model)]
    replays = replays_of(model)
    still = SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none=True: None)
    with DpEngine(
        model, bent, still, steps,
        batch_size=1, pull=lambda: None, physical_batch=3, replays=replays,
    ) as engine:  # fmt: skip
        for _ in range(3):
            outcome = engine(batch)
            got = [parameter.grad for parameter in trainable(model)]
            for mine, theirs in zip(got, expected.sums, strict=True):
                assert mine is not None
                assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)
            assert torch.allclose(outcome.losses, expected.losses, rtol=1e-4)
    assert all(map(torch.equal, before, trainable(model)))
    assert replays.replayed == 3 * 4 - 1


@ON_EACH
def test_a_record_without_a_finite_gradient_adds_nothing_to_a_replay(device: str) -> None:
    model = perceptron(device)
    with bookkeeping(model, replays_of(model)) as backend:
        for seed in range(3):
            backend.clipped_sum(batch_of(5, device, seed))
        batch = batch_of(5, device, 3)
        batch.targets[2] = math.inf
        found = backend.clipped_sum(batch)
        others = batch.take(torch.tensor([0, 1, 3, 4], device=device))
        expected = flat(looped_sum(perceptron(device), bent, Clipping(0.5), others).sums)
        assert torch.allclose(flat(found.sums), expected, rtol=1e-4, atol=1e-6)
        assert found.norms.isinf().tolist() == [False, False, True, False, False]
        after = backend.clipped_sum(others.take(torch.tensor([0, 1, 2, 3, 3], device=device)))
        assert bool(torch.isfinite(flat(after.sums)).all())


@ON_EACH
def test_records_that_even_a_batch_out_count_for_nothing_in_a_replay(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "FEW_SIZES", {"cpu", "cuda"})
    model = perceptron(device)
    replays = replays_of(model)
    with bookkeeping(model, replays) as backend:
        for records in (32, 31, 30, 29, 32):  # they become 32 and 30
            batch = batch_of(records, device, records)
            found = backend.clipped_sum(batch)
            expected = looped_sum(perceptron(device), bent, Clipping(0.5), batch)
            assert torch.allclose(flat(found.sums), flat(expected.sums), rtol=1e-4, atol=1e-5)
            assert len(found.losses) == len(found.norms) == records
    assert (replays.obstacle, replays.replayed) == (None, 3)


@ON_EACH
def test_what_was_replayed_is_the_receivers(device: str) -> None:
    model = perceptron(device)
    with bookkeeping(model, replays_of(model)) as backend:
        for seed in range(2):
            backend.clipped_sum(batch_of(5, device, seed))
        one = backend.clipped_sum(batch_of(5, device, 2))
        kept = deepcopy((one.sums, one.losses, one.norms))
        for each in backend.clipped_sum(batch_of(5, device, 3)).sums:
            each.zero_()
        assert all(map(torch.equal, one.sums, kept[0]))
        assert torch.equal(one.losses, kept[1])
        assert torch.equal(one.norms, kept[2])


class Drawing(nn.Module):
    """Leaves its second layer out by chance, decided on the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.first(inputs)
        return self.second(outputs) if float(torch.rand(())) < 0.5 else outputs


class Waiting(Drawing):
    """Does so by what the device has made."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.first(inputs)
        return self.second(outputs) if float(outputs.detach().sum()) < 0.0 else outputs


@ON_EACH
@pytest.mark.parametrize(
    ("made", "why"), [(Drawing, "drawn on the processor"), (Waiting, "synchroniz|a wait")]
)
def test_a_model_that_decides_anew_is_not_recorded(
    made: Callable[[], nn.Module], why: str, device: str
) -> None:
    model = made().to(device)
    recorder = Again(waiting=made is Waiting, drawing=False)  # a processor tells of no wait
    replays = replays_of(model, recorder if device == "cpu" else None)
    with bookkeeping(model, replays) as backend:
        for seed in range(4):
            found = backend.clipped_sum(batch_of(5, device, seed))
            assert bool(torch.isfinite(flat(found.sums)).all())
    assert re.search(why, str(replays.obstacle))
    assert replays.replayed == 0


@ON_EACH
def test_dropout_is_drawn_anew_at_each_step(device: str) -> None:
    model = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3)).to(device)
    replays, batch = replays_of(model), batch_of(5, device)
    with bookkeeping(model, replays) as backend:
        found = [flat(backend.clipped_sum(batch).sums) for _ in range(5)]
    assert len({tuple(each.tolist()) for each in found}) == 5
    assert (replays.obstacle, replays.replayed) == (None, 4)


def test_what_would_keep_too_much_memory_is_not_replayed() -> None:
    model, recorder = perceptron("cpu"), Again(room=10)
    replays = replays_of(model, recorder)
    with bookkeeping(model, replays) as backend:
        for seed in range(4):
            backend.clipped_sum(batch_of(5, "cpu", seed))
    assert "memory" in str(replays.obstacle)
    assert len(recorder.records) == 1


def test_where_nothing_was_recorded_the_pass_is_made() -> None:
    class Blank(Again):
        def record(self, work: Callable[[], None]) -> Callable[[], object]:
            return lambda: None  # as a graph of another GPU's stream would be

    model = perceptron("cpu")
    replays = replays_of(model, Blank())
    with bookkeeping(model, replays) as backend:
        for seed in range(4):
            batch = batch_of(5, "cpu", seed)
            found = backend.clipped_sum(batch)
            expected = looped_sum(perceptron("cpu"), bent, Clipping(0.5), batch)
            assert torch.allclose(flat(found.sums), flat(expected.sums), rtol=1e-4, atol=1e-6)
    assert "leave no trace" in str(replays.obstacle)


def test_without_room_for_a_recording_the_pass_is_made_of_as_many_records() -> None:
    class Crowded(Again):
        def record(self, work: Callable[[], None]) -> Callable[[], object]:
            raise torch.OutOfMemoryError("no room")

    model, batch = perceptron("cpu"), batch_of(6, "cpu")
    replays = replays_of(model, Crowded())
    still = SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none=True: None)
    steps = PrivateSteps(sampling_rate=0.1, noise_multiplier=0.0, clipping_norm=0.5)
    with DpEngine(
        model, bent, still, steps,
        batch_size=1, pull=lambda: None, physical_batch=6, replays=replays,
    ) as engine:  # fmt: skip
        for _ in range(3):
            engine(batch)
        assert engine.physical_batch == 6
    assert "no room" in str(replays.obstacle)


class Overflowing(nn.Module):
    """The second of its inputs overflows where dropout lets it pass."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(self.dropout(inputs))
        return outputs


@ON_EACH
@pytest.mark.parametrize("beside", [1.0, math.inf])
def test_whether_a_record_counts_is_no_matter_of_others(device: str, beside: float) -> None:
    with known_randomness():
        model = Overflowing().to(device)
        replays = replays_of(model)
        inputs = torch.tensor([[3e38], [beside], [1.0]], device=device)
        batch, counted = Examples((inputs,), torch.ones(3, device=device)), 0
        with bookkeeping(model, replays) as backend:
            for _ in range(400):
                counted += int(backend.clipped_sum(batch).norms[0].isfinite())
    assert 0.4 < counted / 400 < 0.6
    assert replays.obstacle is None
    assert (replays.replayed > 0) == math.isfinite(beside)


class Masked(nn.Module):
    """Keeps what it has made for batches of one size until another comes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.mask = nn.Linear(6, 3), torch.ones(0, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.mask.shape[0] != inputs.shape[0]:
            self.mask = torch.full((inputs.shape[0], 1), 2.0, device=inputs.device)
        outputs: Tensor = self.linear(inputs * self.mask)
        return outputs


@ON_EACH
def test_what_a_model_has_kept_of_a_batch_is_there_for_its_recording(device: str) -> None:
    model = Masked().to(device)
    twin, replays = deepcopy(model), replays_of(model)
    with bookkeeping(model, replays) as backend:
        for seed in range(12):
            batch = batch_of(5 + seed % 2, device, seed)
            found = backend.clipped_sum(batch)
            junk = [torch.full((5, 1), math.nan, device=device) for _ in range(64)]
            expected = looped_sum(twin, bent, Clipping(0.5), batch)
            assert torch.allclose(flat(found.sums), flat(expected.sums), rtol=1e-4, atol=1e-5)
            del junk
    assert (replays.obstacle, replays.replayed) == (None, 10)


def test_what_operations_read_from_outside_is_kept() -> None:
    model, batch = perceptron("cpu"), batch_of(5, "cpu")
    cached = torch.rand(5, 3)
    with Outside() as outside:
        losses = (model(*batch.inputs) * cached).sum(dim=1) * batch.targets
        torch.autograd.grad(losses.sum(), list(model.parameters()))
    read = {each.data_ptr() for each in outside.kept.values()}
    expected = (*model.parameters(), *batch.inputs, batch.targets, cached)
    assert read == {each.data_ptr() for each in expected}


def test_weights_that_moved_are_recorded_anew() -> None:
    model, recorder = perceptron("cpu"), Again()
    replays = replays_of(model, recorder)
    with bookkeeping(model, replays) as backend:
        for seed in range(3):
            backend.clipped_sum(batch_of(5, "cpu", seed))
        first = trainable(model)[0]
        first.data = first.data.clone()
        backend.clipped_sum(batch_of(5, "cpu", 3))
    assert len(recorder.records) == 2


def test_a_pass_whose_memory_is_measured_is_made() -> None:
    model, recorder = perceptron("cpu"), Again()
    replays = replays_of(model, recorder)
    with bookkeeping(model, replays) as backend:
        for resting in (False, True, True, False):
            with replays.resting() if resting else nullcontext():
                backend.clipped_sum(batch_of(5, "cpu"))
            assert len(recorder.records) == 0 or not resting
    assert len(recorder.records) == 1

"""What every backend of private training promises, on every layer that it knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from hanse.errors import UnprovableModelError
from hanse.task import Examples
from hanse_client.plan import PrivateSteps
from hanse_client.privacy.backends import BACKENDS, make_backend
from hanse_client.privacy.choice import choose_backend
from hanse_client.privacy.clipping import ClippedSum, Clipping
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.loop import looped_sum
from hanse_client.privacy.precision import exact_float32
from hanse_client.privacy.settings import BackendName
from hanse_client.steps import RecordLoss, trainable
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

SHAPES = settings(derandomize=True, deadline=None, max_examples=12, database=None)
RECORDS = 5

Made = tuple[nn.Module, tuple[Tensor, ...]]
Draw = Callable[..., Any]


def bent(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient is another at each output."""
    rows = outputs.flatten(1)
    return torch.sum(rows.sin() * rows, dim=1) * (1.0 + targets)


def first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.flatten(1)[:, 0] * targets


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten(1) - targets[:, None]).abs().mean(dim=1)


LOSSES: dict[str, RecordLoss] = {"bent": bent, "first": first_output, "absolute": absolute}


# --- models, one for each kind of layer, of any shape -----------------------------------------


class Tokens(nn.Module):
    """Positions come as one row for all records, as transformers has them."""

    def __init__(self, rows: int, width: int, padding: int | None) -> None:
        super().__init__()
        self.words = nn.Embedding(rows, width, padding_idx=padding)
        self.positions = nn.Embedding(20, width)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])[None]
        return torch.tanh(self.words(tokens) + self.positions(places))


class Attending(nn.Module):
    """Attention to the records themselves or to others, with masks."""

    def __init__(self, width: int, heads: int, *, crossed: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, **options)
        self.crossed = crossed
        self.weigh = bool(width % 2)

    def forward(self, query: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        if not self.attention.batch_first:
            query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        if self.crossed:
            found, weights = self.attention(query, memory, memory.cos(), padding > 0.7)
        else:
            steps = query.shape[1 if self.attention.batch_first else 0]
            mask = torch.ones(steps, steps).triu(1).bool()
            found, weights = self.attention(query, query, query, need_weights=False, attn_mask=mask)
        found = found if self.attention.batch_first else found.transpose(0, 1)
        return found if weights is None else torch.cat([found.flatten(1), weights.flatten(1)], 1)


def linear(draw: Draw) -> Made:
    between = draw(st.lists(st.integers(1, 12), max_size=2))
    p, d = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    model = nn.Sequential(nn.Linear(p, d, bias=draw(st.booleans())), nn.Tanh(), nn.Linear(d, 2))
    return model, (torch.randn(RECORDS, *between, p),)


def transposed_linear(draw: Draw) -> Made:
    from transformers.pytorch_utils import Conv1D

    p, d, steps = (draw(st.integers(1, 9)) for _ in range(3))
    layer = Conv1D(d, p)  # type: ignore[no-untyped-call]
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(d, 2)), (torch.randn(RECORDS, steps, p),)


def convolution(dims: int, *, plain: bool) -> Callable[[Draw], Made]:
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[dims]

    def made(draw: Draw) -> Made:
        groups = draw(st.integers(1, 3))
        channels, out = (groups * draw(st.integers(1, 3)) for _ in range(2))
        kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
        stride = tuple(draw(st.integers(1, 2)) for _ in range(dims))
        padding: Any = tuple(draw(st.integers(0, 2)) for _ in range(dims))
        mode: Any = "zeros"
        if not plain:
            mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
            if draw(st.booleans()):
                stride, padding = (1,) * dims, draw(st.sampled_from(["same", "valid"]))
        layer = kind(
            channels, out, kernel, stride, padding,  # type: ignore[arg-type]
            dilation=tuple(draw(st.integers(1, 2)) for _ in range(dims)),  # type: ignore[arg-type]
            groups=groups, bias=draw(st.booleans()), padding_mode=mode,
        )  # fmt: skip
        sides = [draw(st.integers(6, 8)) for _ in range(dims)]
        model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(2))
        return model, (torch.randn(RECORDS, channels, *sides),)

    return made


def deep_convolution(draw: Draw) -> Made:
    """So many channels and so few places that norms come from Gram matrices."""
    layers = nn.Sequential(nn.Conv2d(16, 32, 3, groups=2), nn.Tanh(), nn.Conv2d(32, 16, 2))
    return layers, (torch.randn(RECORDS, 16, 4, 4),)


def layer_norm(draw: Draw) -> Made:
    shape = draw(st.lists(st.integers(2, 5), min_size=1, max_size=2))
    between = draw(st.lists(st.integers(1, 4), max_size=2))
    model = nn.Sequential(nn.LayerNorm(shape), nn.Tanh())
    return model, (torch.randn(RECORDS, *between, *shape),)


def rms_norm(draw: Draw) -> Made:
    width, steps = draw(st.integers(2, 9)), draw(st.integers(1, 5))
    return nn.Sequential(nn.RMSNorm(width), nn.Tanh()), (torch.randn(RECORDS, steps, width),)


def group_norm(draw: Draw) -> Made:
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    between = draw(st.lists(st.integers(1, 4), max_size=2))
    model = nn.Sequential(nn.GroupNorm(groups, groups * size), nn.Tanh())
    return model, (torch.randn(RECORDS, groups * size, *between),)


def embedding(draw: Draw, padding: int | None = None) -> Made:
    rows, width, steps = draw(st.integers(2, 9)), draw(st.integers(1, 6)), draw(st.integers(2, 12))
    return Tokens(rows, width, padding), (torch.randint(0, rows, (RECORDS, steps)),)


def padded_embedding(draw: Draw) -> Made:
    return embedding(draw, padding=1)


def attention(draw: Draw) -> Made:
    heads = draw(st.integers(1, 3))
    width = heads * draw(st.integers(1, 3))
    crossed = draw(st.booleans())
    other = draw(st.sampled_from([width, 5])) if crossed else width
    model = Attending(
        width, heads, crossed=crossed, batch_first=draw(st.booleans()), bias=draw(st.booleans()),
        kdim=other, vdim=other,
    )  # fmt: skip
    steps, among = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    padding = torch.rand(RECORDS, among)
    padding[:, 0] = 0.0
    return model, (torch.randn(RECORDS, steps, width), torch.randn(RECORDS, among, other), padding)


def encoder(draw: Draw) -> Made:
    """torch's own encoder, whose fast path must not pass by the taps."""
    layer = nn.TransformerEncoderLayer(
        6,
        draw(st.sampled_from([1, 2, 3])),
        8,
        0.0,
        batch_first=True,
        norm_first=draw(st.booleans()),
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = model.eval() if draw(st.booleans()) else model
    return model, (torch.randn(RECORDS, draw(st.integers(1, 5)), 6),)


def transformers(draw: Draw) -> Made:
    from transformers import BertConfig, BertForSequenceClassification

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )  # fmt: skip
            self.bert = BertForSequenceClassification(config)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.bert(tokens).logits  # type: ignore[no-any-return]

    return Bert(), (torch.randint(0, 20, (RECORDS, draw(st.integers(1, 6)))),)


def lora(draw: Draw) -> Made:
    from peft import LoraConfig, inject_adapter_in_model

    model, inputs = transformers(draw)
    assert isinstance(model.bert, nn.Module)
    options = LoraConfig(r=2, lora_alpha=3, target_modules=["query", "value"])
    model.bert = inject_adapter_in_model(options, model.bert)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return model, inputs


class Recurrent(nn.Module):
    """One layer many times, and a weight of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        state = torch.zeros(len(tokens), 4)
        for step in self.embed(tokens).unbind(1):
            state = (self.cell(state) + step).tanh()
        return self.out(state)  # type: ignore[no-any-return]


def recurrent(draw: Draw) -> Made:
    return Recurrent(), (torch.randint(0, 7, (RECORDS, draw(st.integers(1, 4)))),)


def repeated(draw: Draw) -> Made:
    """One layer under two names, and one attention twice."""
    layer = nn.Linear(4, 4)
    attention = Attending(4, 2, crossed=False, batch_first=True)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.attending = layer, layer, attention

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.other(self.one(inputs).tanh())
            once = self.attending(hidden, hidden, hidden)
            return self.attending(once, once, once)  # type: ignore[no-any-return]

    return Twice(), (torch.randn(RECORDS, draw(st.integers(1, 4)), 4),)


def frozen(draw: Draw) -> Made:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    for place in draw(st.sets(st.integers(0, 2), min_size=1)):
        model[place].requires_grad_(False)
    for part in draw(st.sets(st.sampled_from(["weight", "bias"]), max_size=1)):
        getattr(model[3], part).requires_grad_(False)
    return model, (torch.randn(RECORDS, draw(st.integers(1, 4)), 4),)


MODELS: dict[str, Callable[[Draw], Made]] = {
    "linear": linear,
    "transposed_linear": transposed_linear,
    "conv1d": convolution(1, plain=True),
    "conv2d": convolution(2, plain=True),
    "conv1d_padded": convolution(1, plain=False),
    "conv2d_padded": convolution(2, plain=False),
    "deep_convolution": deep_convolution,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "embedding": embedding,
    "padded_embedding": padded_embedding,
    "attention": attention,
    "encoder": encoder,
    "transformers": transformers,
    "lora": lora,
    "recurrent": recurrent,
    "repeated": repeated,
    "frozen": frozen,
}
ELSEWHERE = {  # what Opacus cannot do
    "transposed_linear": {"ghost"},
    "conv1d_padded": {"ghost", "hooks"},
    "conv2d_padded": {"ghost", "hooks"},
    "embedding": {"ghost", "hooks"},
    "padded_embedding": {"ghost", "hooks"},
    "attention": {"ghost", "hooks"},
    "encoder": {"ghost", "hooks"},
    "transformers": {"ghost", "hooks"},
    "recurrent": {"ghost"},
    "repeated": {"ghost", "hooks"},
}
PAIRS = [
    (backend, kind)
    for backend in BACKENDS
    for kind in MODELS
    if backend not in ELSEWHERE.get(kind, set())
]


@contextmanager
def known_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        yield


def drawn(kind: str, data: st.DataObject) -> tuple[nn.Module, Examples]:
    with known_randomness():
        model, inputs = MODELS[kind](data.draw)
        return model, Examples(inputs, torch.rand(RECORDS))


def by_backend(
    backend: BackendName, model: nn.Module, loss: RecordLoss, norm: float, batch: Examples
) -> ClippedSum:
    with (
        exact_float32(torch.device("cpu")),
        closing(make_backend(backend, model, loss, Clipping(norm))) as made,
    ):
        return made.clipped_sum(batch)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double()


@pytest.mark.parametrize(("backend", "kind"), PAIRS)
@SHAPES
@given(data=st.data())
def test_clipped_sums_are_those_of_a_loop_over_the_records(
    backend: BackendName, kind: str, data: st.DataObject
) -> None:
    model, batch = drawn(kind, data)
    free = looped_sum(model, bent, Clipping(math.inf), batch)
    norm = float(free.norms.median()) * 1.01 + 1e-3  # clips two of the five
    state = list(model.state_dict())
    found = by_backend(backend, model, bent, norm, batch)
    expected = looped_sum(model, bent, Clipping(norm), batch)
    assert torch.allclose(found.norms, expected.norms, rtol=1e-4, atol=1e-5)
    total, loop = flat(found.sums), flat(expected.sums)
    assert float((total - loop).norm()) <= 1e-4 * float(loop.norm()) + 1e-6
    assert torch.allclose(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    assert [one.shape for one in found.sums] == [p.shape for p in trainable(model)]
    assert list(model.state_dict()) == state
    assert not any(layer._forward_hooks for layer in model.modules())
    assert not any("forward" in vars(layer) for layer in model.modules())


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


# --- what the guarantee rests on, by each backend ---------------------------------------------


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.LayerNorm(16), nn.Linear(16, 3),
    )  # fmt: skip


@pytest.mark.parametrize("make", [perceptron, images])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_out_one_record_moves_the_sum_by_the_clipping_norm_at_most(
    backend: BackendName, loss: str, make: Callable[[], nn.Module]
) -> None:
    with known_randomness():
        model, batch, norm = make(), Examples((torch.randn(7, 6),), torch.rand(7) + 0.5), 0.05
    whole = flat(by_backend(backend, model, LOSSES[loss], norm, batch).sums)
    moves = []
    for removed in range(7):
        rest = batch.take(torch.tensor([i for i in range(7) if i != removed]))
        without = flat(by_backend(backend, model, LOSSES[loss], norm, rest).sums)
        moves.append(float((whole - without).norm()))
    assert max(moves) <= norm
    assert min(moves) >= 0.99 * norm  # all of them are clipped, and none is lost


@pytest.mark.parametrize("value", [math.inf, math.nan, 3e38])
@pytest.mark.parametrize("make", [perceptron, images])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_without_a_finite_gradient_adds_nothing(
    backend: BackendName, make: Callable[[], nn.Module], value: float
) -> None:
    with known_randomness():
        model, inputs, targets = make(), torch.randn(7, 6), torch.rand(7) + 0.5
    rest = torch.tensor([0, 1, 2, 3, 5, 6])
    without = by_backend(backend, model, bent, 0.3, Examples((inputs[rest],), targets[rest]))
    inputs[4] = value
    targets[4] = value
    found = by_backend(backend, model, bent, 0.3, Examples((inputs,), targets))
    assert bool(found.norms[4].isinf())
    assert torch.allclose(flat(found.sums), flat(without.sums), atol=1e-6)
    assert torch.equal(found.norms[rest].isinf(), without.norms.isinf())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_whose_parts_nearly_cancel_is_clipped_all_the_same(backend: BackendName) -> None:
    """The rounding of its Gram matrices is larger than its gradient's squared norm."""
    model, norm = nn.Linear(64, 8, bias=False), 0.1
    with known_randomness():
        inputs = 1e3 * torch.randn(20, 1, 64).expand(20, 2, 64)

    def cancelling(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - (1 + 1e-4 * targets[:, None]) * outputs[:, 1]).sum(dim=1)

    targets = torch.linspace(0.0, 2.0, 20)
    for index in range(20):
        one = Examples((inputs[index : index + 1],), targets[index : index + 1])
        found = by_backend(backend, model, cancelling, norm, one)
        assert float(flat(found.sums).norm()) <= norm


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_of_tiny_and_huge_numbers_are_clipped_all_the_same(backend: BackendName) -> None:
    """Where one factor's square is lost below float32's range, and the other's is near its end."""
    model, norm = nn.Linear(2000, 4, bias=False), 1e-4
    inputs = torch.full((2, 2000), 2.6e-23)
    batch = Examples((inputs,), torch.tensor([1e18, 1e12]))
    found = by_backend(backend, model, lambda o, t: o.sum(dim=1) * t, norm, batch)
    assert float(flat(found.sums).norm()) <= norm


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_the_weights_that_are_clipped_is_that_of_the_sum(backend: BackendName) -> None:
    with known_randomness():
        model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3))
        batch = Examples((torch.randn(1, 6),), torch.ones(1))
        for _ in range(5):
            found = by_backend(backend, model, bent, 1e-3, batch)
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


# --- bfloat16 -----------------------------------------------------------------------------------


def texts() -> nn.Module:
    """With long enough records that all forms of gradients occur."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 48)), nn.Conv1d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU(),
        nn.Linear(48, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 8), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


def test_the_clip_holds_to_the_last_bit_of_float32_after_passes_in_bfloat16() -> None:
    with known_randomness():
        model, inputs, targets = texts(), torch.randn(12, 48), torch.rand(12) + 0.5
    with closing(make_backend("bookkeeping", model, bent, Clipping(0.05), "bfloat16")) as lowered:
        for index in range(12):
            one = Examples((inputs[index : index + 1],), targets[index : index + 1])
            found = lowered.clipped_sum(one)
            assert all(total.dtype == torch.float32 for total in found.sums)
            assert 0.998 * 0.05 < float(flat(found.sums).norm()) <= 0.05
        together = lowered.clipped_sum(Examples((inputs,), targets))
    exact = by_backend("bookkeeping", model, bent, 0.05, Examples((inputs,), targets))
    difference = float((flat(together.sums) - flat(exact.sums)).norm())
    assert 1e-4 < difference / float(flat(exact.sums).norm()) < 0.05  # it was bfloat16, and right


@pytest.mark.parametrize("backend", ["ghost", "hooks"])
def test_backends_that_exceed_the_clip_in_bfloat16_refuse_it(backend: BackendName) -> None:
    with pytest.raises(UnprovableModelError, match="in bfloat16") as refusal:
        make_backend(backend, perceptron(), bent, Clipping(1.0), "bfloat16")
    assert "engine.precision" in refusal.value.remedy


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_of_float32_are_of_float32_whatever_the_process_asks_for(
    backend: BackendName,
) -> None:
    """Unless the engine sees to it: here torch would multiply in bfloat16, on a GPU in TF32."""
    matmul, convolve = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv  # type: ignore[attr-defined]
    seen = []

    def spy(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((matmul.fp32_precision, convolve.fp32_precision))
        return bent(outputs, targets)

    with known_randomness():
        model, batch = images(), Examples((torch.randn(3, 6),), torch.rand(3))
    privacy = PrivateSteps(sampling_rate=0.1, noise_multiplier=1.0, clipping_norm=1.0)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    before = torch.get_float32_matmul_precision(), convolve.fp32_precision
    torch.set_float32_matmul_precision("medium")
    convolve.fp32_precision = "bf16"
    try:
        with DpEngine(
            model, spy, optimizer, privacy, batch_size=3, pull=lambda: None, backend=backend
        ) as engine:
            engine(batch)
        assert torch.get_float32_matmul_precision() == "medium"
        assert convolve.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before[0])
        convolve.fp32_precision = before[1]
    assert set(seen) == {("ieee", "ieee")}

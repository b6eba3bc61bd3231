"""Models, one for each kind of layer and of any shape, and what backends make of their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from typing import Any

import torch
from hanse.task import Examples
from hanse_client.privacy.backends import make_backend
from hanse_client.privacy.clipping import ClippedSum, Clipping
from hanse_client.privacy.precision import exact_float32
from hanse_client.privacy.settings import BackendName
from hanse_client.steps import RecordLoss
from hypothesis import strategies as st
from torch import Tensor, nn

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


class Tokens(nn.Module):
    """Positions come as one row for all records, as transformers has them."""

    def __init__(self, rows: int, width: int, padding: int | None) -> None:
        super().__init__()
        self.words = nn.Embedding(rows, width, padding_idx=padding)
        self.positions = nn.Embedding(20, width)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
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
            mask = torch.ones(steps, steps, device=query.device).triu(1).bool()
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
        state = torch.zeros(len(tokens), 4, device=tokens.device)
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
    backend: BackendName,
    model: nn.Module,
    loss: RecordLoss,
    norm: float,
    batch: Examples,
    device: str = "cpu",
) -> ClippedSum:
    """What a backend makes of a batch; on the CPU again, wherever it was made."""
    where = torch.device(device)
    if device != "cpu":
        model, batch = deepcopy(model).to(where), batch.to(where)
    with (
        exact_float32(where),
        closing(make_backend(backend, model, loss, Clipping(norm))) as made,
    ):
        found = made.clipped_sum(batch)
    return ClippedSum(
        sums=tuple(total.cpu() for total in found.sums),
        losses=found.losses.cpu(),
        norms=found.norms.cpu(),
        held=found.held,
    )


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double()

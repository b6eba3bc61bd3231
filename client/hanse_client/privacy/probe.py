"""Made-up records, and what a model and a loss make of each of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hanse.slices import norm_of, square_distance
from hanse.task import Examples
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hanse_client.steps import RecordLoss, trainable

PROBED = 4
"""Records that are made up."""

_TOLERANCE = 1e-3  # far above float32's rounding, far below one record's share of four
_LEAST = 1e-6

Gradient = tuple[Tensor, ...]
"""One tensor for each trainable parameter."""

_DROPOUT = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)


def probe_of(model: nn.Module) -> nn.Module:
    """A copy on the CPU, for one check to do with as it likes."""
    return copy.deepcopy(model).cpu()


def made_up(examples: Examples) -> Examples:
    """Records of the same types and shapes: floats in (0, 1), integers 0 and 1."""
    generator = torch.Generator().manual_seed(0)

    def like(tensor: Tensor) -> Tensor:
        uniform = torch.rand((PROBED, *tensor.shape[1:]), generator=generator)
        if tensor.is_floating_point():
            return (0.05 + 0.9 * uniform).to(tensor.dtype)
        return (uniform < 0.5).to(tensor.dtype)

    return Examples(tuple(like(tensor) for tensor in examples.inputs), like(examples.targets))


def another(batch: Examples, index: int) -> Examples:
    """``batch`` with another record in the place of one."""
    inputs = tuple(tensor.clone() for tensor in batch.inputs)
    for tensor in inputs:
        tensor[index] = 1 - tensor[index].float()
    return Examples(inputs, batch.targets)


@contextmanager
def seeded() -> Iterator[None]:
    """The same randomness each time; torch's own goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class DropoutAtRest(TorchFunctionMode):
    """Within this, dropout lets everything pass, whether a layer does it or a function."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _DROPOUT:
            return args[0] if args else named["input"]
        if func is F.scaled_dot_product_attention:
            named["dropout_p"], args = 0.0, args[:4]
        if func is F.multi_head_attention_forward:
            args = (*args[:10], 0.0, *args[11:])
        return func(*args, **named)


@dataclass(frozen=True)
class Tried:
    """What one pass over B records made, of which a single record's gradient was taken.

    Attributes:
        outputs: (B, ...).
        losses: (B,).
        gradient: of that record's loss, one tensor for each trainable parameter.
    """

    outputs: Tensor
    losses: Tensor
    gradient: Gradient


def tried(model: nn.Module, loss: RecordLoss, batch: Examples, record: int) -> Tried:
    """Try a batch, and take the gradient of one of its records.

    Each gradient is as large as the model, so that those of several records, or of several
    batches, would fill the memory of a site with a model that trains there easily.
    """
    outputs = model(*batch.inputs)
    losses = loss(outputs, batch.targets)
    gradient = torch.autograd.grad(losses[record], trainable(model), materialize_grads=True)
    return Tried(outputs.detach(), losses.detach(), gradient)


def gradients_of(model: nn.Module, loss: RecordLoss, batch: Examples) -> Iterator[Gradient]:
    """The gradient of each record's loss, one after the other, from one pass."""
    parameters = trainable(model)
    for one in loss(model(*batch.inputs), batch.targets):
        yield torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True)


def by_record(model: nn.Module, loss: RecordLoss, batch: Examples) -> Tensor:
    """All of these at once, (B, P): of small models."""
    return torch.stack([flat(gradient) for gradient in gradients_of(model, loss, batch)])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def alike_gradients(some: Gradient, others: Gradient) -> bool:
    """Whether they are the same gradient, up to rounding."""
    difference = sum(square_distance(one, other) for one, other in zip(some, others, strict=True))
    return math.sqrt(difference) <= _TOLERANCE * norm_of(some) + _LEAST


def alike(some: Tensor, others: Tensor) -> bool:
    """Whether each row is the other's, up to rounding."""
    if some.shape != others.shape:
        return False
    some, others = some.reshape(len(some), -1).double(), others.reshape(len(others), -1).double()
    difference, size = (some - others).norm(dim=1), some.norm(dim=1)
    return bool((difference <= _TOLERANCE * size + _LEAST).all())

"""What each known kind of layer makes of its input and the gradient of its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from hanse_client.privacy.bookkeeping.convolution import Convolving, convolved
from hanse_client.privacy.bookkeeping.gradients import Gradients, Held, Rows, products


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a parameter that are used as a parameter of their own."""

    whole: Tensor
    start: int
    stop: int


Owner: TypeAlias = Tensor | Part
Found: TypeAlias = Iterator[tuple[Sequence[Owner], Gradients]]

Rule: TypeAlias = Callable[[Any, Tensor, Tensor], Found]
"""A layer, its input (B, ...) and the gradient of its output (B, ...), to the gradients of the
records with respect to the layer's trainable parameters."""


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for a layer; None if it is of no known kind, or does not do what its kind does."""
    rule = _BY_TYPE.get(type(layer)) or _BY_NAME.get(_full_name(type(layer)))
    if rule is None or not {"weight", "bias"}.issuperset(layer._parameters):
        return None
    if isinstance(layer, nn.Embedding) and (layer.max_norm or layer.scale_grad_by_freq):
        return None
    return rule


def _linear(layer: nn.Linear, inputs: Tensor, right: Tensor) -> Found:
    learnt_bias = _learnt(layer.bias)
    if layer.weight.requires_grad:
        yield (layer.weight, *learnt_bias), products(inputs, right, bias=bool(learnt_bias))
    elif learnt_bias:
        yield learnt_bias, _summed(learnt_bias[0], right)


def _transposed_linear(layer: Any, inputs: Tensor, right: Tensor) -> Found:
    """``Conv1D`` of transformers: a linear layer with its weight the other way round."""
    if layer.weight.requires_grad:
        yield (layer.weight,), products(right, inputs, bias=False)
    if layer.bias.requires_grad:
        yield (layer.bias,), _summed(layer.bias, right)


def _convolution(layer: Convolving, inputs: Tensor, right: Tensor) -> Found:
    learnt_bias = _learnt(layer.bias)
    if layer.weight.requires_grad:
        gradients = convolved(layer, inputs, right, bias=bool(learnt_bias))
        yield (layer.weight, *learnt_bias), gradients
    elif learnt_bias:
        yield learnt_bias, Held((right.flatten(2).sum(dim=2),))


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, right: Tensor) -> Found:
    for weight in _learnt(layer.weight):
        normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        yield (weight,), _summed(weight, normal.mul_(right))
    for bias in _learnt(layer.bias):
        yield (bias,), _summed(bias, right)


def _rms_norm(layer: nn.RMSNorm, inputs: Tensor, right: Tensor) -> Found:
    normal = F.rms_norm(inputs, list(layer.normalized_shape), eps=layer.eps)
    yield (layer.weight,), _summed(layer.weight, normal.mul_(right))


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, right: Tensor) -> Found:
    for weight in _learnt(layer.weight):
        normal = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
        yield (weight,), _by_channel(normal.mul_(right))
    for bias in _learnt(layer.bias):
        yield (bias,), _by_channel(right)


def _embedding(layer: nn.Embedding, inputs: Tensor, right: Tensor) -> Found:
    indices, right = inputs.flatten(1), right.reshape(len(right), -1, layer.embedding_dim)
    if layer.padding_idx is not None:
        right = right.masked_fill((indices == layer.padding_idx)[:, :, None], 0.0)
    yield (layer.weight,), Rows(indices, right, layer.num_embeddings)


_BY_TYPE: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
}

_BY_NAME: dict[str, Rule] = {"transformers.pytorch_utils.Conv1D": _transposed_linear}
"""Of packages that need not be installed."""


def _full_name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _learnt(parameter: Tensor | None) -> tuple[Tensor, ...]:
    return () if parameter is None or not parameter.requires_grad else (parameter,)


def _summed(parameter: Tensor, tensor: Tensor) -> Held:
    """Over all dimensions of (B, ..., *shape) between the first and the parameter's."""
    between = tuple(range(1, tensor.dim() - parameter.dim()))
    return Held((tensor.sum(dim=between) if between else tensor,))


def _by_channel(tensor: Tensor) -> Held:
    """(B, C, ...) summed to (B, C)."""
    return Held((tensor.flatten(2).sum(dim=2) if tensor.dim() > 2 else tensor,))

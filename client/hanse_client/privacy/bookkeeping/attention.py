"""torch's multi-head attention, written out so that its projections can be noted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanse_client.privacy.bookkeeping.gradients import Held, products
from hanse_client.privacy.bookkeeping.layers import Found, Owner, Part

Noting: TypeAlias = Callable[[Callable[[Tensor, Tensor], Found], Tensor, Tensor], None]


def is_known(layer: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether it is torch's, without keys and values that belong to no record."""
    return type(layer) is nn.MultiheadAttention and layer.bias_k is None and not layer.add_zero_attn


class Attention:
    """The forward pass of ``layer``, batch by batch as torch defines it.

    Args:
        note: is told of the rule, the inputs and the output of each projection.
    """

    def __init__(self, layer: nn.MultiheadAttention, note: Noting) -> None:
        self._layer = layer
        self._note = note
        self._projections = [
            (self._weight(place), self._part(layer.in_proj_bias, place)) for place in range(3)
        ]

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # a hint only: torch asks for the mask besides
    ) -> tuple[Tensor, Tensor | None]:
        layer, inputs = self._layer, (query, key, value)
        if not layer.batch_first:
            inputs = (query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1))
        query, key, value = (
            self._by_head(self._project(*projection, tensor))
            for projection, tensor in zip(self._projections, inputs, strict=True)
        )
        mask = _mask(query, attn_mask, key_padding_mask)
        dropout = layer.dropout if layer.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = query @ key.mT / math.sqrt(query.shape[-1])
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            weights = F.dropout(weights, dropout)
            attended = weights @ value
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        joined = attended.transpose(1, 2).flatten(2)
        out = self._project(layer.out_proj.weight, layer.out_proj.bias, joined)
        return out if layer.batch_first else out.transpose(0, 1), weights

    def _project(self, weight: Owner, bias: Owner | None, inputs: Tensor) -> Tensor:
        out = F.linear(inputs, _values(weight), None if bias is None else _values(bias))
        self._note(partial(_rule, weight, bias), inputs, out)
        return out

    def _weight(self, place: int) -> Owner:
        """Of query, key or value; torch packs them where they are of one width."""
        layer = self._layer
        apart = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)[place]
        packed = self._part(layer.in_proj_weight, place)
        return apart if packed is None else packed

    def _part(self, packed: Tensor | None, place: int) -> Part | None:
        width = self._layer.embed_dim
        return None if packed is None else Part(packed, place * width, (place + 1) * width)

    def _by_head(self, tensor: Tensor) -> Tensor:
        """(B, T, E) as (B, heads, T, E / heads)."""
        records, steps, _ = tensor.shape
        return tensor.reshape(records, steps, self._layer.num_heads, -1).transpose(1, 2)


def _values(owner: Owner) -> Tensor:
    return owner.whole[owner.start : owner.stop] if isinstance(owner, Part) else owner


def _learns(owner: Owner) -> bool:
    return (owner.whole if isinstance(owner, Part) else owner).requires_grad


def _rule(weight: Owner, bias: Owner | None, inputs: Tensor, right: Tensor) -> Found:
    learnt_bias = () if bias is None or not _learns(bias) else (bias,)
    if _learns(weight):
        yield (weight, *learnt_bias), products(inputs, right, bias=bool(learnt_bias))
    elif learnt_bias:
        yield learnt_bias, Held((right.sum(dim=1),))


def _mask(query: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """What is added to the scores (B, heads, L, S): of (L, S) or (B * heads, L, S), and (B, S)."""
    records, heads, steps, _ = query.shape
    if mask is not None:
        mask = _additive(mask, query)
        mask = mask.view(records, heads, steps, -1) if mask.dim() == 3 else mask
    if padding is None:
        return mask
    padding = _additive(padding, query)[:, None, None, :]
    return padding if mask is None else mask + padding


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)

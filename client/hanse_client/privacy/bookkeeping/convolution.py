"""Gradients of convolutions, of any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanse_client.privacy.bookkeeping.gradients import (
    Gradients,
    Held,
    Squares,
    gram_squares,
    zeroed,
)
from hanse_client.privacy.clipping import row_norms

Convolving: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

_CACHED = 2**18
"""Numbers of unfolded activations that stay in a CPU's second-level cache."""

_UNFOLDED = 2**26
"""The same for a GPU: a quarter of a GiB."""

_UNFOLDING = 16
"""How much dearer a Gram matrix of windows is than one of vectors that lie in memory: measured."""


@dataclass(frozen=True)
class Convolved:
    """Of a convolution's weight, described by its input and the gradient of its output.

    Attributes:
        layer: whose padding has been applied to ``inputs`` already.
        inputs: shape (B, C, ...).
        right: shape (B, O, ...).
        bias: whether the gradient of the layer's bias is wanted too.
    """

    layer: Convolving
    inputs: Tensor
    right: Tensor
    bias: bool

    def squares(self) -> Squares:
        lefts, rights = self._windows(self.inputs), self._by_group(self.right)
        records, groups, length, _ = lefts.shape
        squares = gram_squares(
            (lefts.mT @ lefts).flatten(0, 1),
            (rights.mT @ rights).flatten(0, 1),
            max(length, rights.shape[2]),
        )
        values = squares.values.view(records, groups).sum(dim=1)
        if self.bias:
            values += row_norms(self._right_sums()).square_()
        error = squares.error
        return Squares(values, None if error is None else error.view(records, groups).sum(dim=1))

    def weighted_sums(self, weights: Tensor) -> Sequence[Tensor]:
        right = self.right * weights.view(-1, *[1] * (self.right.dim() - 1))
        layer, dims = self.layer, self.right.dim() - 2
        _, weight, bias = torch.ops.aten.convolution_backward(
            right,
            self.inputs,
            layer.weight.detach(),
            [layer.out_channels],
            layer.stride,
            [0] * dims,
            layer.dilation,
            False,
            [0] * dims,
            layer.groups,
            [False, True, self.bias],
        )
        return [weight.contiguous(), bias] if self.bias else [weight.contiguous()]

    def held(self) -> Sequence[Tensor]:
        layer, records = self.layer, len(self.inputs)
        right = self._by_group(self.right)
        rows = right.new_empty(records, layer.groups, right.shape[2], layer.weight[0].numel())
        unfolded = layer.groups * rows.shape[3] * right.shape[3]
        limit = _CACHED if rows.device.type == "cpu" else _UNFOLDED
        step = max(1, limit // unfolded)
        for start in range(0, records, step):
            part = slice(start, start + step)
            torch.matmul(right[part], self._windows(self.inputs[part]).mT, out=rows[part])
        rows = rows.view(records, *layer.weight.shape)
        return [rows, self._right_sums()] if self.bias else [rows]

    def without(self, records: Tensor) -> Convolved:
        inputs, right = zeroed(self.inputs, records), zeroed(self.right, records)
        return Convolved(self.layer, inputs, right, self.bias)

    def nbytes(self) -> int:
        return self.inputs.nbytes + self.right.nbytes

    def _right_sums(self) -> Tensor:
        return self.right.flatten(2).sum(dim=2)

    def _by_group(self, tensor: Tensor) -> Tensor:
        """(B, channels, ...) as (B, groups, channels of a group, everything else)."""
        records, channels = tensor.shape[:2]
        groups = self.layer.groups
        return tensor.reshape(records, groups, channels // groups, -1)

    def _windows(self, inputs: Tensor) -> Tensor:
        """What each place of the kernel saw: (B, groups, C / groups * kernel, T).

        A strided view, copied once: four times as fast as ``unfold`` on a CPU.
        """
        layer = self.layer
        out = self.right.shape[2:]
        within = [step * by for step, by in zip(inputs.stride()[2:], layer.dilation, strict=True)]
        along = [step * by for step, by in zip(inputs.stride()[2:], layer.stride, strict=True)]
        view = inputs.as_strided(
            (*inputs.shape[:2], *layer.kernel_size, *out),
            (*inputs.stride()[:2], *within, *along),
            inputs.storage_offset(),
        )
        return view.reshape(len(inputs), layer.groups, -1, math.prod(out))


def convolved(layer: Convolving, inputs: Tensor, right: Tensor, *, bias: bool) -> Gradients:
    """The form that costs less, as in :func:`products`; but windows have to be unfolded first."""
    gradients = Convolved(layer, _padded(layer, inputs), right, bias)
    steps = math.prod(right.shape[2:])
    if 2 * _UNFOLDING * steps**2 <= layer.weight.numel() / layer.groups:
        return gradients
    return Held(tuple(gradients.held()))


def _padded(layer: Convolving, inputs: Tensor) -> Tensor:
    if layer.padding == "valid":
        return inputs
    if layer.padding == "same":
        sizes = zip(layer.dilation, layer.kernel_size, strict=True)
        beyond = [by * (size - 1) for by, size in sizes]
        sides = [(total // 2, total - total // 2) for total in beyond]
    else:
        sides = [(int(width), int(width)) for width in layer.padding]
    if not any(chain.from_iterable(sides)):
        return inputs
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, list(chain.from_iterable(reversed(sides))), mode=mode)

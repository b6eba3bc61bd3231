"""Functions of tensors as lists of torch's operations, without what Python wraps around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., tuple[Tensor, ...]]

AFTER = 50
"""Calls with the same shapes before a function is traced anew: that takes as long as a hundred."""

MOST = 16
"""Shapes for which a function is traced."""


class Traced:
    """A function of tensors whose operations depend on the shapes of its arguments alone.

    For the first shapes, and for others that come again and again, it is replaced by the
    operations that it came to, which give the same to the last bit. ``torch.func.vmap`` sees to
    it that none depends on a value.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._traced: dict[tuple[object, ...], Function] = {}

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function returns for ``tensors``."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        known = self._traced.get(key)
        if known is not None:
            return known(*tensors)
        self._seen[key] += 1
        if self._traced and (self._seen[key] <= AFTER or len(self._traced) >= MOST):
            return self._function(*tensors)
        traced: Function = make_fx(self._function)(*tensors)
        self._traced[key] = traced
        return traced(*tensors)

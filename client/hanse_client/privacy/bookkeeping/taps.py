"""Taps on the layers of a model: what flows through them goes into the books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from hanse.errors import UnprovableModelError
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from hanse_client.privacy.bookkeeping.attention import Attention, is_known
from hanse_client.privacy.bookkeeping.books import Books
from hanse_client.privacy.bookkeeping.layers import Found, Rule, rule_of
from hanse_client.privacy.precision import exact_float32

Note: TypeAlias = Callable[[Tensor, Tensor], Found]
"""Inputs (B, ...) and the gradient of what was made of them (B, ...), to gradients of records."""


class Tap:
    """What the layers of one kind of tap have in common: an output to be noted.

    Args:
        shared: whether another layer owns one of its parameters too.
    """

    def __init__(self, books: Books, *, shared: bool) -> None:
        self.calls = 0
        self._books = books
        self._shared = shared

    def note(self, rule: Note, inputs: Tensor, out: Tensor) -> None:
        """Make an entry by ``rule`` when the backward pass has come to ``out``."""
        if not out.requires_grad:
            return
        if not inputs.requires_grad:
            self._books.first.append(get_gradient_edge(out))
        inputs = inputs.detach()
        enter = partial(self._enter, rule, inputs, inputs._version)
        out.register_hook(enter)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Leave the layer as it was."""
        raise NotImplementedError

    def _enter(self, rule: Note, inputs: Tensor, version: int, right: Tensor) -> None:
        books = self._books
        if inputs._version != version:
            raise UnprovableModelError("a layer's input was changed in place after its use")
        if not inputs.shape[0] == right.shape[0] == books.records:
            raise UnprovableModelError("a layer's input does not hold one entry for each record")
        inputs, right = _full(inputs), _full(right)
        enter = books.enter_shared if self._shared or self.calls > 1 else books.enter
        with exact_float32(right.device):
            for parameters, gradients in rule(inputs, right):
                enter(parameters, gradients)


def _full(tensor: Tensor) -> Tensor:
    """In float32 at least: norms and sums are made in no less."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class LayerTap(Tap):
    """On a layer of one input and one output."""

    def __init__(self, books: Books, layer: nn.Module, rule: Rule, *, shared: bool) -> None:
        super().__init__(books, shared=shared)
        self._rule = partial(rule, layer)
        self._handles = [layer.register_forward_hook(self._keep, with_kwargs=True)]
        if isinstance(layer, nn.Embedding):
            self._handles.append(layer.register_forward_pre_hook(self._spread))

    def remove(self) -> None:
        """Leave the layer as it was."""
        for handle in self._handles:
            handle.remove()

    def _keep(
        self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Tensor
    ) -> None:
        self.calls += 1
        self.note(self._rule, args[0] if args else next(iter(named.values())), out)

    def _spread(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """One row of indices for all records, such as positions, becomes one for each."""
        if not args or args[0].dim() < 2 or args[0].shape[0] != 1:
            return args
        indices: Tensor = args[0]
        return (indices.expand(self._books.records, *indices.shape[1:]), *args[1:])


class AttentionTap(Tap):
    """On torch's multi-head attention, whose weights are used past all layers."""

    def __init__(self, books: Books, layer: nn.MultiheadAttention, *, shared: bool) -> None:
        super().__init__(books, shared=shared)
        self._layer = layer
        self._attention = Attention(layer, self.note)
        layer.forward = self._forward  # type: ignore[method-assign]

    def remove(self) -> None:
        """Leave the layer as it was."""
        del self._layer.forward

    def _forward(self, *args: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        self.calls += 1
        return self._attention(*args, **named)


def tap(books: Books, model: nn.Module) -> list[Tap]:
    """Taps on all layers of ``model`` that learn.

    Raises:
        UnprovableModelError: if one of them is not of a known kind.
    """
    layers = dict(_learning(model))
    owners = Counter[Tensor](p for layer in layers.values() for p in _owned(layer))
    taps: list[Tap] = []
    unknown = []
    for name, layer in layers.items():
        shared = any(owners[parameter] > 1 for parameter in _owned(layer))
        if is_known(layer) and not shared:
            taps.append(AttentionTap(books, layer, shared=False))
        elif (rule := rule_of(layer)) is not None:
            taps.append(LayerTap(books, layer, rule, shared=shared))
        else:
            unknown.append(f"{name or 'model'} ({type(layer).__name__})")
    if unknown:
        for each in taps:
            each.remove()
        raise UnprovableModelError(f"it does not know {', '.join(unknown)}")
    return taps


def _learning(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers with trainable parameters of their own, each once; attention is one layer."""
    inner: set[nn.Module] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            inner.update(layer.children())
        if layer not in inner and any(parameter.requires_grad for parameter in _owned(layer)):
            yield name, layer


def _owned(layer: nn.Module) -> Iterator[nn.Parameter]:
    return layer.parameters(recurse=isinstance(layer, nn.MultiheadAttention))

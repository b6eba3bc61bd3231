"""The books: what a forward and a backward pass tell of each record's gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from hanse.errors import UnprovableModelError
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hanse_client.privacy.bookkeeping.gradients import Gradients, Held
from hanse_client.privacy.bookkeeping.layers import Rule, rule_of
from hanse_client.privacy.clipping import safe_norms

Entry: TypeAlias = tuple[Sequence[Tensor], Gradients]


class Books:
    """Open them before the forward pass; after the backward pass they tell norms and gradients.

    A layer's entry is made when the backward pass reaches its output, so that what is not needed
    any more can go. The gradients of a parameter that is used more than once, by one layer or by
    several, are held for each record and added up, before norms are taken.

    Attributes:
        first: outputs of layers before which nothing is learnt: the backward pass ends there.

    Raises:
        UnprovableModelError: if a trainable layer is not of a known kind.
    """

    def __init__(self, model: nn.Module) -> None:
        if unknown := unknown_layers(model):
            raise UnprovableModelError(
                f"the backend 'bookkeeping' does not know {', '.join(unknown)}"
            )
        layers = [layer for layer in model.modules() if learns(layer)]
        owners = Counter[Tensor](p for layer in layers for p in layer.parameters(recurse=False))
        self._taps = [
            _Tap(self, layer, rule, shared=any(owners[p] > 1 for p in layer.parameters(False)))
            for layer in layers
            if (rule := rule_of(layer)) is not None
        ]
        self.open(0)

    def open(self, records: int) -> None:
        """Begin with a part of a batch."""
        self.records = records
        self.first: list[GradientEdge] = []
        self._entries: list[Entry] = []
        self._shared: dict[Tensor, Tensor] = {}
        self._squares: Tensor | None = None
        self._error: Tensor | None = None
        for tap in self._taps:
            tap.calls = 0

    def enter(self, parameters: Sequence[Tensor], gradients: Gradients) -> None:
        """Of parameters that are used once."""
        squares = gradients.squares()
        self._squares = _plus(self._squares, squares.values)
        if squares.error is not None:
            self._error = _plus(self._error, squares.error)
        self._entries.append((parameters, gradients))

    def enter_shared(self, parameters: Sequence[Tensor], gradients: Gradients) -> None:
        """Of parameters that other entries may tell of, too."""
        for parameter, rows in zip(parameters, gradients.held(), strict=True):
            before = self._shared.get(parameter)
            self._shared[parameter] = rows if before is None else before + rows

    def close(self) -> tuple[Tensor | None, list[Entry]]:
        """The norms, shape (B,), infinite where they are not finite, and all entries.

        The norms are None if no layer had a part in the losses. The books are empty afterwards.
        """
        for parameter, rows in self._shared.items():
            self.enter((parameter,), Held((rows,)))
        norms = None
        if self._squares is not None:
            norms = safe_norms(self._squares, self._error)
        entries = self._entries
        self.open(0)
        return norms, entries

    def remove(self) -> None:
        """Take the hooks off."""
        self.open(0)
        for tap in self._taps:
            tap.remove()


class _Tap:
    """Hooks on one layer, which make its entries."""

    def __init__(self, books: Books, layer: nn.Module, rule: Rule, *, shared: bool) -> None:
        self.calls = 0
        self._books = books
        self._rule = partial(rule, layer)
        self._shared = shared
        self._handles = [layer.register_forward_hook(self._keep, with_kwargs=True)]
        if isinstance(layer, nn.Embedding):
            self._handles.append(layer.register_forward_pre_hook(self._spread, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(
        self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Tensor
    ) -> None:
        if not out.requires_grad:
            return
        self.calls += 1
        inputs: Tensor = args[0] if args else next(iter(named.values()))
        if not inputs.requires_grad:
            self._books.first.append(get_gradient_edge(out))
        inputs = inputs.detach()
        out.register_hook(partial(self._enter, inputs, inputs._version))  # type: ignore[no-untyped-call]

    def _enter(self, inputs: Tensor, version: int, right: Tensor) -> None:
        books = self._books
        if inputs._version != version:
            raise UnprovableModelError("a layer's input was changed in place after its use")
        if not inputs.shape[0] == right.shape[0] == books.records:
            raise UnprovableModelError("a layer's input does not hold one entry for each record")
        enter = books.enter_shared if self._shared or self.calls > 1 else books.enter
        for parameters, gradients in self._rule(inputs, right):
            enter(parameters, gradients)

    def _spread(
        self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One row of indices for all records, such as positions, becomes one for each."""
        if not args or args[0].dim() < 2 or args[0].shape[0] != 1:
            return args, named
        indices: Tensor = args[0]
        return (indices.expand(self._books.records, *indices.shape[1:]), *args[1:]), named


def unknown_layers(model: nn.Module) -> list[str]:
    """The trainable layers that this backend has no rule for, as ``name (Type)``."""
    return [
        f"{name or 'model'} ({type(layer).__name__})"
        for name, layer in model.named_modules()
        if learns(layer) and rule_of(layer) is None
    ]


def learns(layer: nn.Module) -> bool:
    """Whether it has trainable parameters of its own."""
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def _plus(total: Tensor | None, addend: Tensor) -> Tensor:
    return addend if total is None else total + addend

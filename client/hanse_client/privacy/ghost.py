"""The backend ``ghost``: Opacus' ghost clipping, two backward passes and no held gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from hanse.errors import UnprovableModelError
from hanse.task import Examples
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from torch import Tensor, nn

from hanse_client.privacy.bookkeeping.gradients import products
from hanse_client.privacy.clipping import ClippedSum, Clipping, row_norms, safe_norms
from hanse_client.privacy.hooks import forget, quiet
from hanse_client.privacy.loop import looped_sum
from hanse_client.privacy.precision import exact_float32
from hanse_client.steps import RecordLoss, trainable

Norms = dict[Tensor, Tensor]


class GhostBackend:
    """Norms from a first backward pass, and from a second one of the weighted losses the sum.

    Li et al. 2022, arXiv 2110.05679, as Opacus has it, with norms of our own: Opacus' own take
    no account of rounding, and a record whose parts nearly cancel passes them unclipped. They
    also fail on inputs of more than three dimensions. The names in the model's ``state_dict``
    stay what they are.

    Raises:
        UnprovableModelError: if a layer is none of those that Opacus has a rule for, or a
            parameter belongs to two layers.
    """

    name: ClassVar[str] = "ghost"

    def __init__(self, model: nn.Module, loss: RecordLoss, clipping: Clipping) -> None:
        _check(model)
        self._model = model
        self._loss = loss
        self._clipping = clipping
        self._parameters = trainable(model)
        self._hooks = _Hooks(model, loss_reduction="sum", use_ghost_clipping=True)

    def clipped_sum(self, part: Examples) -> ClippedSum:
        """The sum over ``part``, which holds at least one record."""
        with exact_float32(part.targets.device):
            return self._sum(part)

    def _sum(self, part: Examples) -> ClippedSum:
        forget(self._model)
        with quiet():
            losses = self._loss(self._model(*part.inputs), part.targets)
            torch.autograd.backward(losses.sum(), retain_graph=True)
            norms = safe_norms(self._squares(losses))
            forget(self._model)
            self._hooks.disable_hooks()
            try:
                if bool(norms.isinf().any()):
                    # In the second pass 0 times infinity would be NaN, for all records.
                    return looped_sum(self._model, self._loss, self._clipping, part)
                torch.autograd.backward((self._clipping.factors(norms) * losses).sum())
            finally:
                self._hooks.enable_hooks()
        return ClippedSum(
            sums=tuple(_taken(parameter) for parameter in self._parameters),
            losses=losses.detach(),
            norms=norms,
        )

    def close(self) -> None:
        """Take the hooks off, and free the gradients."""
        forget(self._model)
        self._hooks.cleanup()

    def _squares(self, losses: Tensor) -> Tensor:
        squares = torch.zeros_like(losses.detach())
        for parameter in self._parameters:
            norms: Tensor | None = getattr(parameter, "_norm_sample", None)
            if norms is not None:  # it had a part in the losses
                squares += norms.square()
        return squares


def _check(model: nn.Module) -> None:
    owners: Counter[Tensor] = Counter()
    for name, layer in model.named_modules():
        learnt = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        owners.update(learnt)
        if learnt and type(layer) not in GradSampleHooks.GRAD_SAMPLERS:
            raise UnprovableModelError(
                f"the backend 'ghost' does not know {name or 'model'} ({type(layer).__name__})"
            )
    if any(count > 1 for count in owners.values()):
        raise UnprovableModelError("the backend 'ghost' cannot train a parameter of two layers")


def _linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> Norms:
    learns_bias = layer.bias is not None and layer.bias.requires_grad
    found: Norms = {}
    if layer.weight.requires_grad:
        squares = products(activations[0], backprops, bias=learns_bias).squares()
        found[layer.weight] = safe_norms(squares.values, squares.error)
        if learns_bias:  # counted with the weight
            found[layer.bias] = torch.zeros_like(squares.values)
    elif learns_bias:
        found[layer.bias] = row_norms(backprops.flatten(1, -2).sum(dim=1))
    return found


def _norms_of(sampler: Callable[..., dict[Tensor, Tensor]]) -> Callable[..., Norms]:
    """Of the gradients that Opacus' own rule holds for a moment."""

    def norms(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> Norms:
        held = sampler(layer, activations, backprops)
        return {parameter: row_norms(rows) for parameter, rows in held.items()}

    return norms


class _Hooks(GradSampleHooksFastGradientClipping):  # type: ignore[misc]
    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {
        **{kind: _norms_of(rule) for kind, rule in GradSampleHooks.GRAD_SAMPLERS.items()},
        nn.Embedding: GradSampleHooksFastGradientClipping.NORM_SAMPLERS[nn.Embedding],
        nn.Linear: _linear_norms,
    }


def _taken(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient, which is no longer the parameter's."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient.contiguous()

"""The backend ``hooks``: Opacus' hooks hold the gradient of every record."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from hanse.errors import UnprovableModelError
from hanse.task import Examples
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from hanse_client.privacy.clipping import ClippedSum, Clipping, row_norms, safe_norms
from hanse_client.privacy.precision import exact_float32
from hanse_client.steps import RecordLoss, trainable


class HooksBackend:
    """One backward pass that leaves each record's gradient of each weight: B x P numbers.

    The names in the model's ``state_dict`` stay what they are.

    Raises:
        UnprovableModelError: if Opacus does not know a trainable layer.
    """

    name: ClassVar[str] = "hooks"

    def __init__(self, model: nn.Module, loss: RecordLoss, clipping: Clipping) -> None:
        self._model = model
        self._loss = loss
        self._clipping = clipping
        self._parameters = trainable(model)
        try:
            self._hooks = GradSampleHooks(model, loss_reduction="sum")
        except NotImplementedError as error:
            raise UnprovableModelError(f"Opacus cannot handle it: {error}") from error

    def clipped_sum(self, part: Examples) -> ClippedSum:
        """The sum over ``part``, which holds at least one record."""
        with exact_float32(part.targets.device):
            return self._sum(part)

    def _sum(self, part: Examples) -> ClippedSum:
        forget(self._model)
        losses = self._loss(self._model(*part.inputs), part.targets)
        with quiet():
            torch.autograd.backward(losses.sum())
        gradients = [_by_record(parameter, len(part)) for parameter in self._parameters]
        norms = safe_norms(torch.stack([row_norms(rows) for rows in gradients]).square().sum(dim=0))
        factors, boundless = self._clipping.factors(norms), norms.isinf()
        if bool(boundless.any()):
            gradients = [rows.masked_fill(boundless[:, None], 0.0) for rows in gradients]
        sums = tuple(
            (factors.to(rows.dtype) @ rows).view_as(parameter)
            for parameter, rows in zip(self._parameters, gradients, strict=True)
        )
        forget(self._model)
        held = sum(rows.nbytes for rows in gradients)
        return ClippedSum(sums=sums, losses=losses.detach(), norms=norms, held=held)

    def close(self) -> None:
        """Take the hooks off, and free the gradients."""
        forget(self._model)
        self._hooks.cleanup()


@contextmanager
def quiet() -> Iterator[None]:
    """No warning of the first layer, whose inputs are records and need no gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def forget(model: nn.Module) -> None:
    """Drop what Opacus has kept of a batch.

    It keeps activations of a layer whose output had no part in the loss, and would take them for
    those of the next batch; and gradients and norms of a layer that the next batch does not use.
    """
    for module in model.modules():
        for kept in ("activations", "max_batch_len"):
            module.__dict__.pop(kept, None)
    for parameter in model.parameters():
        parameter.grad = None
        for kept in ("_current_grad_sample", "_norm_sample"):
            if hasattr(parameter, kept):
                delattr(parameter, kept)
        if hasattr(parameter, "grad_sample"):
            parameter.grad_sample = None
            parameter._forward_counter = 0  # type: ignore[attr-defined]


def _by_record(parameter: nn.Parameter, records: int) -> Tensor:
    """Shape (B, numel); zeros if the parameter had no part in the batch: it gets noise too."""
    gradients: Tensor | None = getattr(parameter, "grad_sample", None)
    if gradients is None:
        return parameter.new_zeros(()).expand(records, parameter.numel())
    return gradients.reshape(records, parameter.numel())

"""Which backend a model is trained with: the first that is right about it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch
from hanse.errors import UnprovableModelError
from hanse.slices import norm_of
from hanse.task import Examples
from torch import nn

from hanse_client.privacy.backends import BACKENDS, make_backend
from hanse_client.privacy.clipping import ClippedSum, Clipping
from hanse_client.privacy.probe import (
    DropoutAtRest,
    alike_gradients,
    gradients_of,
    made_up,
    probe_of,
    seeded,
)
from hanse_client.privacy.settings import BackendName
from hanse_client.steps import RecordLoss, trainable


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A backend, and why it is this one."""

    backend: BackendName
    reason: str


def choose_backend(
    model: nn.Module,
    loss: RecordLoss,
    examples: Examples,
    asked: BackendName = "auto",
) -> Choice:
    """Try the backends on a few made-up records, and take the first that clips them as it should.

    Each sum of clipped gradients is held against the one from the gradients of the records, as
    autograd has them one by one. That finds parameters which the model uses behind their layer's
    back, and inputs of layers which do not hold one entry for each record.

    Args:
        examples: whose types and shapes are taken, and nothing else.
        asked: one to insist on, or ``auto``.

    Raises:
        UnprovableModelError: if none of them can train the model, with the reasons.
    """
    batch = made_up(examples)
    refusals: list[str] = []
    for name in BACKENDS if asked == "auto" else (asked,):
        try:
            _check_sums(name, probe_of(model).train(), loss, batch)
        except UnprovableModelError as refusal:
            refusals.append(f"{name}: {refusal}")
        else:
            why = "asked for in site.toml" if asked == name else "the fastest that can train it"
            return Choice(backend=name, reason="; ".join([why, *refusals]))
    raise UnprovableModelError(
        f"the gradients of the model's records cannot be had one by one ({'; '.join(refusals)})",
        remedy="Use layers that Opacus knows, each parameter through its own layer's forward.",
    )


def _check_sums(name: BackendName, model: nn.Module, loss: RecordLoss, batch: Examples) -> None:
    with seeded(), DropoutAtRest():
        norms = torch.tensor([norm_of(each) for each in gradients_of(model, loss, batch)])
    clipping = Clipping(float(norms.median()) or 1.0)
    with seeded(), DropoutAtRest():
        expected = [torch.zeros_like(parameter) for parameter in trainable(model)]
        for gradient, factor in zip(
            gradients_of(model, loss, batch), clipping.factors(norms), strict=True
        ):
            for total, part in zip(expected, gradient, strict=True):
                total.add_(part, alpha=float(factor))
    found = _clipped_sum(name, model, loss, clipping, batch)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for parameter, total, loop in zip(learned, found.sums, expected, strict=True):
        if not alike_gradients((loop,), (total.reshape(loop.shape),)):
            raise UnprovableModelError(
                f"parameter {parameter!r} is used outside the layer that it belongs to"
            )


def _clipped_sum(
    name: BackendName, model: nn.Module, loss: RecordLoss, clipping: Clipping, batch: Examples
) -> ClippedSum:
    try:
        backend = make_backend(name, model, loss, clipping)
        with closing(backend), seeded(), DropoutAtRest():
            return backend.clipped_sum(batch)
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        raise UnprovableModelError(f"it fails with {type(error).__name__}: {error}") from error

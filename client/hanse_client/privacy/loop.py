"""The clipped sum by its definition: one backward pass for each record."""

from __future__ import annotations

import torch
from hanse.task import Examples
from torch import Tensor, nn

from hanse_client.privacy.clipping import ClippedSum, Clipping, row_norms, safe_norms
from hanse_client.steps import RecordLoss, trainable


def looped_sum(
    model: nn.Module, loss: RecordLoss, clipping: Clipping, part: Examples
) -> ClippedSum:
    """What every backend must agree with; as slow as it is plain."""
    parameters = trainable(model)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    losses, norms = [], []
    for index in range(len(part)):
        one = part.part(index, index + 1)
        own = loss(model(*one.inputs), one.targets)
        gradients = torch.autograd.grad(own.sum(), parameters, materialize_grads=True)
        norm = safe_norms(_square(gradients)[None])
        if not bool(norm.isinf()):
            for total, gradient in zip(sums, gradients, strict=True):
                total += clipping.factors(norm) * gradient
        losses.append(own.detach())
        norms.append(norm)
    return ClippedSum(sums=tuple(sums), losses=torch.cat(losses), norms=torch.cat(norms))


def _square(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([row_norms(gradient[None]) for gradient in gradients]).square().sum()

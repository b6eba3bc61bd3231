"""Gradients of many sites' models at once, each from its own weights and its own records.

The models' weights are stacked, (S, ...) for S sites, and ``torch.func.vmap`` does with all of
them what is written down for one: no model's gradient depends on another's weights or records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hanse_client.privacy.clipping import Clipping, safe_norms
from hanse_client.stacked.traced import Traced
from hanse_client.steps import RecordLoss

HELD = 2**27
"""Bytes of gradients by record that are held at once."""


@dataclass(frozen=True)
class Batches:
    """A batch of each site, padded to one length.

    Attributes:
        inputs: each of shape (S, B, ...).
        targets: shape (S, B, ...).
        real: shape (S, B), False for what was padded.
        sizes: records of each site, shape (S,).
        counts: the same numbers.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    real: Tensor
    sizes: Tensor
    counts: Sequence[int]

    def part(self, start: int, end: int) -> Batches:
        """Some of each site's records; the sizes are still those of all."""
        return Batches(
            tuple(tensor[:, start:end] for tensor in self.inputs),
            self.targets[:, start:end],
            self.real[:, start:end],
            self.sizes,
            self.counts,
        )


@dataclass(frozen=True)
class Found:
    """What a step of each site goes along, and what it saw.

    Attributes:
        gradients: one tensor a weight, (S, ...), contiguous: of the mean loss, or, of private
            steps, the sum of the clipped gradients of the records.
        losses: of the records, (S, B), 0 for what was padded.
        clipped: how many gradients lost something, for each site; 0 without privacy.
    """

    gradients: list[Tensor]
    losses: Tensor
    clipped: Sequence[int]


class Gradients:
    """Of a model's trainable parameters and a loss.

    Guarantee with ``clipping``: as any :class:`hanse_client.privacy.clipping.Backend`'s: a record
    moves its own site's sums, taken together, by at most the clipping norm, and no other site's.

    Args:
        clipping: of the gradients by record; None for the gradients of mean losses.
    """

    def __init__(self, model: nn.Module, loss: RecordLoss, clipping: Clipping | None) -> None:
        self._model, self._loss, self._clipping = model, loss, clipping
        named = dict(model.named_parameters())
        self.names = [name for name, parameter in named.items() if parameter.requires_grad]
        fixed = {name: named[name].detach() for name in named if name not in self.names}
        self._fixed = fixed | dict(model.named_buffers())
        self._means = Traced(self._of_means)
        self._sums = Traced(self._of_records)

    def __call__(self, weights: Sequence[Tensor], batches: Batches) -> Found:
        """What each site finds at its own ``weights``, (S, ...), in the order of the names."""
        if self._clipping is None:
            arguments = *batches.inputs, batches.targets, batches.real, batches.sizes
            *gradients, losses = self._means(*weights, *self._fixed.values(), *arguments)
            return Found(_contiguous(gradients), losses, [0] * len(losses))
        return self._clipped(self._clipping, weights, batches)

    # --- without privacy ------------------------------------------------------------------------

    def _of_means(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, fixed, (*inputs, targets, real, sizes) = self._sorted(tensors)

        def of_site(
            own: Mapping[str, Tensor],
            inputs: tuple[Tensor, ...],
            targets: Tensor,
            real: Tensor,
            size: Tensor,
        ) -> tuple[Tensor, Tensor]:
            losses = self._loss(functional_call(self._model, {**own, **fixed}, inputs), targets)
            losses = torch.where(real, losses, 0.0)
            return losses.sum() / size, losses

        gradients, losses = vmap(grad(of_site, has_aux=True))(
            weights, tuple(inputs), targets, real, sizes
        )
        return *gradients.values(), losses

    # --- with privacy ---------------------------------------------------------------------------

    def _clipped(self, clipping: Clipping, weights: Sequence[Tensor], batches: Batches) -> Found:
        length = batches.targets.shape[1]
        at_once = max(1, HELD // max(1, sum(tensor.nbytes for tensor in weights)))
        sums = [torch.zeros_like(tensor) for tensor in weights]
        lost, losses = torch.zeros_like(batches.sizes), []
        for start in range(0, length, at_once):
            part = batches.part(start, start + at_once)
            arguments = *weights, *self._fixed.values(), *part.inputs, part.targets, part.real
            *found, some, norms = self._sums(*arguments)
            if bool(norms.isinf().any()):
                *found, some, norms = self._of_records(*arguments, masked=True)
            for total, addend in zip(sums, found, strict=True):
                total.add_(addend)
            lost += ((norms > clipping.bound) & part.real).sum(dim=1)
            losses.append(some)
        return Found(sums, torch.cat(losses, dim=1), lost.int().tolist())

    def _of_records(self, *tensors: Tensor, masked: bool = False) -> tuple[Tensor, ...]:
        """The clipped sums, the losses and the norms.

        Args:
            masked: leave out gradients that count for nothing: 0 times infinity would be NaN.
        """
        weights, fixed, (*inputs, targets, real) = self._sorted(tensors)

        def of_record(
            own: Mapping[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor
        ) -> tuple[Tensor, Tensor]:
            one = tuple(tensor[None] for tensor in inputs)
            outputs = functional_call(self._model, {**own, **fixed}, one)
            loss = self._loss(outputs, target[None])[0]
            return loss, loss

        of_records = vmap(grad(of_record, has_aux=True), in_dims=(None, 0, 0))
        gradients, losses = vmap(of_records)(weights, tuple(inputs), targets)
        rows = [each.flatten(2) for each in gradients.values()]
        squares = [torch.linalg.vector_norm(each, dim=2).square() for each in rows]
        norms = safe_norms(torch.stack(squares).sum(dim=0))
        factors = self._factors(norms, real)
        if masked:
            rows = [torch.where((factors == 0.0)[..., None], 0.0, each) for each in rows]
        sums = [torch.bmm(factors[:, None].to(each.dtype), each) for each in rows]
        shaped = [total.view_as(weights[name]) for name, total in zip(weights, sums, strict=True)]
        return *shaped, torch.where(real, losses, 0.0), norms

    def _factors(self, norms: Tensor, real: Tensor) -> Tensor:
        if self._clipping is None:
            raise RuntimeError("gradients of records are clipped")
        return torch.where(real, self._clipping.factors(norms), 0.0)

    def _sorted(
        self, tensors: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Sequence[Tensor]]:
        """Weights and what is fixed, by name, and the rest."""
        learned, known = len(self.names), len(self.names) + len(self._fixed)
        return (
            dict(zip(self.names, tensors[:learned], strict=True)),
            dict(zip(self._fixed, tensors[learned:known], strict=True)),
            tensors[known:],
        )


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]

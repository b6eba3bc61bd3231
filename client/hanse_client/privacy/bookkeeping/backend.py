"""The backend ``bookkeeping``: one forward pass, and one backward pass without weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from hanse.task import Examples
from torch import Tensor, nn

from hanse_client.privacy.bookkeeping.books import Books, Entry
from hanse_client.privacy.bookkeeping.layers import Part
from hanse_client.privacy.bookkeeping.taps import tap
from hanse_client.privacy.clipping import ClippedSum, Clipping
from hanse_client.privacy.memory import step_of_sizes
from hanse_client.privacy.precision import exact_float32
from hanse_client.privacy.replays import Replays
from hanse_client.privacy.settings import Precision
from hanse_client.steps import RecordLoss, losses_of, trainable


class BookkeepingBackend:
    """Book-keeping of Bu et al. 2022, arXiv 2210.00038.

    The backward pass makes the gradients of the layers' outputs only. From those and the layers'
    inputs come the norm of each record's gradient, and then one gradient of each weight, in
    which each record counts by its factor. Frozen layers cost nothing.

    The norms and the sum are functions of the same inputs and output gradients. So what is
    clipped is what is summed, whatever the precision of the passes before; a parameter that the
    model uses behind its layer's back loses that part of its gradient, and no privacy.

    Args:
        precision: of the passes through the model. What a layer kept of them becomes float32
            before a norm or a sum is made of it, so that in bfloat16 too, and in a GPU's TF32,
            the sum is made of the very gradients whose norms were taken; rounding has only
            changed which they are.
        replays: where passes of this model, this loss and this clipping are kept, to be replayed.

    Raises:
        UnprovableModelError: if a trainable layer is not of a known kind.
    """

    name: ClassVar[str] = "bookkeeping"

    def __init__(
        self,
        model: nn.Module,
        loss: RecordLoss,
        clipping: Clipping,
        precision: Precision = "float32",
        replays: Replays | None = None,
    ) -> None:
        self._model = model
        self._loss = loss
        self._clipping = clipping
        self._parameters = trainable(model)
        self._precision: Precision = precision
        self._books = Books()
        self._taps = tap(self._books, model)
        self._replays = replays

    def clipped_sum(self, part: Examples) -> ClippedSum:
        """The sum over ``part``, which holds at least one record."""
        records, part = len(part), evened(part)
        counted = torch.arange(len(part), device=part.targets.device) < records
        made = None
        if self._replays is not None:
            made = self._replays.run(self._summed, part, counted)
        if made is None:
            made = self._summed(part, counted, look=True)
        return replace(made, losses=made.losses[:records], norms=made.norms[:records])

    def _summed(self, part: Examples, counted: Tensor, *, look: bool = False) -> ClippedSum:
        """The sum over the records marked in ``counted``, shape (B,).

        Args:
            look: whether to look for records without a finite gradient, and keep them out of the
                sum, which is not finite otherwise. To look is to wait for the device.
        """
        books = self._books
        books.open(len(part))
        for each in self._taps:
            each.calls = 0
        losses = losses_of(self._model, self._loss, part, self._precision)
        if books.first:
            ones = torch.ones_like(losses)
            torch.autograd.grad(losses, books.first, ones, allow_unused=True)
        with exact_float32(losses.device):
            return self._close(losses.detach(), counted, look=look)

    def _close(self, losses: Tensor, counted: Tensor, *, look: bool) -> ClippedSum:
        norms, entries = self._books.close()
        if norms is None:
            norms = torch.zeros_like(losses)
        elif look and not math.isfinite(norms.sum()):
            boundless = norms.isinf()
            entries = [(owners, found.without(boundless)) for owners, found in entries]
        held = sum(found.nbytes() for _, found in entries)
        sums = _sums(entries, self._clipping.factors(norms) * counted)
        return ClippedSum(
            sums=tuple(_or_zeros(sums.get(p), p) for p in self._parameters),
            losses=losses,
            norms=norms,
            held=held,
        )

    def close(self) -> None:
        """Take the hooks off."""
        self._books.open(0)
        for each in self._taps:
            each.remove()


def evened(part: Examples) -> Examples:
    """With its last record again and again, up to one of the sizes that its device should see."""
    count, device = len(part), part.targets.device
    missing = -count % step_of_sizes(count, device)
    if not missing:
        return part
    return part.take(torch.arange(count + missing, device=device).clamp_(max=count - 1))


def _sums(entries: list[Entry], factors: Tensor) -> dict[Tensor, Tensor]:
    """By parameter; empties ``entries``, to free what each holds as soon as it has been summed."""
    sums: dict[Tensor, Tensor] = {}
    while entries:
        owners, gradients = entries.pop()
        for owner, total in zip(owners, gradients.weighted_sums(factors), strict=True):
            if isinstance(owner, Part):
                whole = sums.setdefault(owner.whole, torch.zeros_like(owner.whole.detach()))
                whole[owner.start : owner.stop] = total
            else:
                sums[owner] = total
    return sums


def _or_zeros(total: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if total is None else total

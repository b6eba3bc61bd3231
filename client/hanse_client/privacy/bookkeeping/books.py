"""The books: what a forward and a backward pass tell of each record's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor
from torch.autograd.graph import GradientEdge

from hanse_client.privacy.bookkeeping.gradients import Gradients, Held
from hanse_client.privacy.bookkeeping.layers import Owner
from hanse_client.privacy.clipping import safe_norms

Entry: TypeAlias = tuple[Sequence[Owner], Gradients]


class Books:
    """Open them before the forward pass; after the backward pass they tell norms and gradients.

    A layer's entry is made when the backward pass reaches its output, so that what is not needed
    any more can go. The gradients of a parameter that is used more than once, by one layer or by
    several, are held for each record and added up, before norms are taken.

    Attributes:
        records: in the part of a batch that is under way.
        first: outputs of layers before which nothing is learnt: the backward pass ends there.
    """

    def __init__(self) -> None:
        self.open(0)

    def open(self, records: int) -> None:
        """Begin with a part of a batch."""
        self.records = records
        self.first: list[GradientEdge] = []
        self._entries: list[Entry] = []
        self._shared: dict[Owner, Tensor] = {}
        self._squares: Tensor | None = None
        self._error: Tensor | None = None

    def enter(self, owners: Sequence[Owner], gradients: Gradients) -> None:
        """Of parameters that are used once."""
        squares = gradients.squares()
        self._squares = _plus(self._squares, squares.values)
        if squares.error is not None:
            self._error = _plus(self._error, squares.error)
        self._entries.append((owners, gradients))

    def enter_shared(self, owners: Sequence[Owner], gradients: Gradients) -> None:
        """Of parameters that other entries may tell of, too."""
        for owner, rows in zip(owners, gradients.held(), strict=True):
            before = self._shared.get(owner)
            self._shared[owner] = rows if before is None else before + rows

    def close(self) -> tuple[Tensor | None, list[Entry]]:
        """The norms, shape (B,), infinite where they are not finite, and all entries.

        The norms are None if no layer had a part in the losses. The books are empty afterwards.
        """
        for owner, rows in self._shared.items():
            self.enter((owner,), Held((rows,)))
        norms = None
        if self._squares is not None:
            norms = safe_norms(self._squares, self._error)
        entries = self._entries
        self.open(0)
        return norms, entries


def _plus(total: Tensor | None, addend: Tensor) -> Tensor:
    return addend if total is None else total + addend

"""The gradients of a batch's records with respect to a layer's parameters, held or described.

Each form gives the same three things: the squares of the records' norms, their weighted sums, and
the gradients themselves. Which form costs least depends on the layer's shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hanse_client.privacy.clipping import row_norms

LARGEST = 1e26
"""Squared norm above which activations or output gradients count as not finite.

The square of a norm that is made as a product has lost what float32 rounds to 0 in one factor;
below this in the other factor, what is lost is under 1e-6 in the norm for a million numbers.
"""


@dataclass(frozen=True)
class Squares:
    """Squared norms, shape (B,), and how far below the true ones rounding may have put them."""

    values: Tensor
    error: Tensor | None = None


class Gradients(Protocol):
    """Of B records, with respect to one parameter or several."""

    def squares(self) -> Squares:
        """The squares of their L2 norms, over all these parameters together."""
        ...

    def weighted_sums(self, weights: Tensor) -> Sequence[Tensor]:
        """Their sums in the parameters' shapes, each times its weight of shape (B,)."""
        ...

    def held(self) -> Sequence[Tensor]:
        """The gradients themselves, shapes (B, ...)."""
        ...

    def without(self, records: Tensor) -> Gradients:
        """The same with zeros for the records marked in ``records``, shape (B,)."""
        ...

    def nbytes(self) -> int:
        """Bytes that it keeps in memory."""
        ...


@dataclass(frozen=True)
class Held:
    """The gradients themselves.

    Attributes:
        rows: one tensor a parameter, shapes (B, ...).
    """

    rows: tuple[Tensor, ...]

    def squares(self) -> Squares:
        first, *others = [_square(rows) for rows in self.rows]
        return Squares(sum(others, start=first))

    def weighted_sums(self, weights: Tensor) -> Sequence[Tensor]:
        return [(weights @ rows.flatten(1)).view(rows.shape[1:]) for rows in self.rows]

    def held(self) -> Sequence[Tensor]:
        return self.rows

    def without(self, records: Tensor) -> Held:
        return Held(tuple(zeroed(rows, records) for rows in self.rows))

    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows)


@dataclass(frozen=True)
class Product:
    """Of a matrix that multiplies one vector of each record, and of a bias: ``right left^T``.

    Attributes:
        left: shape (B, p).
        right: shape (B, d).
        bias: whether ``right`` is the gradient of a second parameter.
    """

    left: Tensor
    right: Tensor
    bias: bool

    def squares(self) -> Squares:
        left, right = _square(self.left), _square(self.right)
        if self.bias:
            left.add_(1.0)
        finite = torch.maximum(left, right) <= LARGEST
        return Squares(torch.where(finite, left * right, math.inf))

    def weighted_sums(self, weights: Tensor) -> Sequence[Tensor]:
        right = self.right * weights[:, None]
        weight = right.T @ self.left
        return [weight, right.sum(dim=0)] if self.bias else [weight]

    def held(self) -> Sequence[Tensor]:
        rows = self.right[:, :, None] * self.left[:, None, :]
        return [rows, self.right] if self.bias else [rows]

    def without(self, records: Tensor) -> Product:
        return Product(zeroed(self.left, records), zeroed(self.right, records), self.bias)

    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes


@dataclass(frozen=True)
class Products:
    """Of a matrix that multiplies T vectors of each record: the sum over t of ``right_t left_t^T``.

    Its norms come from the Gram matrices of both sides (Goodfellow 2015, arXiv 1510.01799;
    Li et al. 2022, arXiv 2110.05679): ``sum_ts <left_t, left_s> <right_t, right_s>``.

    Attributes:
        left: shape (B, T, p).
        right: shape (B, T, d).
        bias: whether the sum of ``right`` over t is the gradient of a second parameter.
    """

    left: Tensor
    right: Tensor
    bias: bool

    def squares(self) -> Squares:
        lefts = self.left @ self.left.mT
        rights = self.right @ self.right.mT
        length = max(self.left.shape[2], self.right.shape[2])
        squares = gram_squares(lefts, rights, length)
        if self.bias:
            return Squares(squares.values + _square(self.right.sum(dim=1)), squares.error)
        return squares

    def weighted_sums(self, weights: Tensor) -> Sequence[Tensor]:
        right = (self.right * weights[:, None, None]).flatten(0, 1)
        weight = right.T @ self.left.flatten(0, 1)
        return [weight, right.sum(dim=0)] if self.bias else [weight]

    def held(self) -> Sequence[Tensor]:
        rows = self.right.mT @ self.left
        return [rows, self.right.sum(dim=1)] if self.bias else [rows]

    def without(self, records: Tensor) -> Products:
        return Products(zeroed(self.left, records), zeroed(self.right, records), self.bias)

    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes


@dataclass(frozen=True)
class Rows:
    """Of a table of which each record looks up T rows.

    Attributes:
        indices: shape (B, T).
        right: gradients of what was looked up, shape (B, T, d).
        rows: of the table.
    """

    indices: Tensor
    right: Tensor
    rows: int

    def squares(self) -> Squares:
        """Sums first what a record adds to the same row; no shape depends on the indices."""
        records, _, width = self.right.shape
        starts = self.rows * torch.arange(records, device=self.indices.device)
        keys, order = (self.indices + starts[:, None]).flatten().sort()
        runs = torch.zeros_like(keys)  # which run of equal keys each is in
        torch.cumsum(keys[1:] != keys[:-1], dim=0, out=runs[1:])
        places = torch.empty_like(runs).scatter_(0, order, runs)
        sums = self.right.new_zeros(len(keys), width)
        sums.index_add_(0, places, self.right.reshape(-1, width))
        owners = torch.zeros_like(runs).scatter_(0, runs, keys // self.rows)
        squares = self.right.new_zeros(records)
        return Squares(squares.index_add_(0, owners, _square(sums)))

    def weighted_sums(self, weights: Tensor) -> Sequence[Tensor]:
        width = self.right.shape[2]
        weighted = (self.right * weights[:, None, None]).view(-1, width)
        table = self.right.new_zeros(self.rows, width)
        return [table.index_add_(0, self.indices.flatten(), weighted)]

    def held(self) -> Sequence[Tensor]:
        records, _, width = self.right.shape
        tables = self.right.new_zeros(records, self.rows, width)
        return [tables.scatter_add_(1, self.indices[:, :, None].expand_as(self.right), self.right)]

    def without(self, records: Tensor) -> Rows:
        return Rows(self.indices, zeroed(self.right, records), self.rows)

    def nbytes(self) -> int:
        return self.indices.nbytes + self.right.nbytes


def products(left: Tensor, right: Tensor, *, bias: bool) -> Gradients:
    """The form that costs less: norms from (T, T) Gram matrices, or gradients of (d, p).

    The rule is that of Bu et al. 2022, arXiv 2210.00038: 2 T^2 against p d.

    Args:
        left: shape (B, ..., p), of any number of dimensions between.
        right: shape (B, ..., d).
    """
    if left.dim() == 2:
        return Product(left, right, bias)
    gradients = Products(left.flatten(1, -2), right.flatten(1, -2), bias)
    (_, steps, p), d = gradients.left.shape, right.shape[-1]
    return gradients if 2 * steps**2 <= p * d else Held(tuple(gradients.held()))


def gram_squares(lefts: Tensor, rights: Tensor, length: int) -> Squares:
    """Squared norms from Gram matrices of shape (B, T, T) each.

    Where the vectors of a record nearly cancel, what is left is smaller than the rounding of
    what was added up, and a norm that is taken as it comes may be far too small: then the
    record would be clipped to more than the clipping norm. The error told with the squares is
    the rounding of inner products of ``length`` numbers (Higham and Mary 2019, SIAM J. Sci.
    Comput. 41(5)), which grows as the root of their length.
    """
    values = (lefts.flatten(1) * rights.flatten(1)).sum(dim=1)
    left, right = lefts.diagonal(dim1=1, dim2=2), rights.diagonal(dim1=1, dim2=2)
    largest = (left * right).sqrt_().sum(dim=1).square_()
    finite = torch.maximum(left.sum(dim=1), right.sum(dim=1)) <= LARGEST
    values = torch.where(finite, values.clamp_(min=0.0), math.inf)
    unit = torch.finfo(values.dtype).eps / 2
    return Squares(values, largest.mul_(math.sqrt(length) * unit))


def zeroed(tensor: Tensor, records: Tensor) -> Tensor:
    """A copy with zeros for the records marked in ``records``, shape (B,)."""
    return tensor.masked_fill(records.view(-1, *[1] * (tensor.dim() - 1)), 0.0)


def _square(rows: Tensor) -> Tensor:
    return row_norms(rows).square_()

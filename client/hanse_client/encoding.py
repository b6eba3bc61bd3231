"""An update as it leaves: encoded as the job asks, and what of it stays behind.

All of it comes after the noise. Encoded bytes, what is left out and how large the error is are
functions of updates that are private themselves, and of randomness that knows no records.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord
from hanse.aggregation import Encoding
from hanse.encodings import decode, encode
from hanse.errors import TaskError, UpdateRangeError
from hanse.flower import size_of, to_array
from torch import Tensor

KEEPS_WHAT_IS_LEFT_OUT = "topk"
"""The encoding whose error is no accident: what it leaves out is to be sent later."""


@dataclass(frozen=True, kw_only=True)
class EncodedUpdate:
    """An update that was encoded.

    Attributes:
        arrays: by the names of the model's state, those that travel.
        left_out: what was to be sent and was not, by name, for :mod:`hanse_client.leftovers`;
            empty for encodings that leave nothing out.
        error: L2 norm of what the encoding changed, over that of what was encoded.
        plain_bytes: of the whole update in the model's dtypes.
    """

    arrays: ArrayRecord
    left_out: dict[str, Tensor]
    error: float
    plain_bytes: int

    @property
    def bytes(self) -> int:
        """Of the arrays that travel."""
        return sum(map(size_of, self.arrays.values()))


def encode_update(
    update: Mapping[str, Tensor],
    encoding: Encoding,
    *,
    seed: int,
    left_out: Mapping[str, Tensor] | None = None,
    frozen: Collection[str] = (),
) -> EncodedUpdate:
    """Encode what a site has learnt, and what it has left out before.

    Args:
        seed: of stochastic rounding.
        left_out: of earlier updates, float32, added to this one.
        frozen: names that do not travel where the job asks for the trainable ones only.

    Raises:
        UpdateRangeError: if a number is beyond what the encoding can tell.
        TaskError: if what is frozen has changed.
    """
    before = left_out or {}
    randomness = torch.Generator().manual_seed(seed)
    arrays, remains, squares, errors = ArrayRecord(), dict[str, Tensor](), 0.0, 0.0
    for name, change in update.items():
        if encoding.trainable_only and name in frozen:
            _check_unchanged(name, change)
            continue
        whole = change if name not in before else _sum(change, before[name])
        array = encode(whole, encoding, randomness)
        arrays[name] = to_array(whole) if array is None else array
        if whole.is_floating_point():
            squares += float(whole.double().square().sum())
        if array is not None:
            lost = whole.double() - _as_it_arrives(name, array, whole, encoding).double()
            errors += float(lost.square().sum())
            if encoding.name == KEEPS_WHAT_IS_LEFT_OUT:
                remains[name] = lost.to(torch.float32)
    return EncodedUpdate(
        arrays=arrays,
        left_out=remains,
        error=math.sqrt(errors / squares) if squares else 0.0,
        plain_bytes=sum(change.numel() * change.element_size() for change in update.values()),
    )


def _sum(change: Tensor, before: Tensor) -> Tensor:
    return (change.to(torch.float32) + before).to(change.dtype)


def _as_it_arrives(name: str, array: Array, sent: Tensor, encoding: Encoding) -> Tensor:
    arrives = decode(array, sent.dtype, tuple(sent.shape))
    if not bool(torch.isfinite(arrives).all()):
        raise UpdateRangeError(
            f"{name!r} has a number beyond what {encoding.name} can tell: "
            f"{float(sent.abs().max()):g} is the largest",
            remedy="Choose another encoding in the job, such as bfloat16, or lower the learning "
            "rate.",
        )
    return arrives


def _check_unchanged(name: str, change: Tensor) -> None:
    if bool(change.any()):
        raise TaskError(
            f"{name!r} is frozen (requires_grad is False), and changed in training",
            remedy="Leave encoding.trainable_only out of the job, or let it be trained.",
        )

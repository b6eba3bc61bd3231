"""Updates, held against the model and the job's bounds before a strategy sees them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from hanse.aggregation import Checks
from hanse.elements import elements_of
from hanse.errors import UpdateError
from hanse.flower import only_arrays, read_tensors, size_of, to_record
from hanse.threads import of_each

MASKED = torch.uint32
"""The dtype of masked updates; no model is of it."""


@dataclass(frozen=True)
class TensorSpec:
    """What an update's tensor must look like."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @cached_property
    def bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def specs_of(arrays: ArrayRecord) -> dict[str, TensorSpec]:
    """The names, dtypes and shapes of a model, that each update must have too."""
    tensors = read_tensors(arrays)
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def masked_specs(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """What masked updates of a model with ``specs`` look like: integers modulo 2^32.

    Of them no norm can be checked: each is uniformly random by itself.
    """
    return {name: TensorSpec(MASKED, spec.shape) for name, spec in specs.items()}


def checked_update(
    reply: Message,
    specs: Mapping[str, TensorSpec],
    checks: Checks,
    *,
    frozen: Collection[str] = (),
) -> tuple[float | None, Message]:
    """The L2 norm of a reply's update as it came, and the reply with the update as it may count.

    The norm is None of a masked update.

    Args:
        frozen: names that it may leave out, as nothing changes there.

    Raises:
        UpdateError: if the update does not fit the model, is not finite, or is larger than
            ``checks`` lets it be.
    """
    norm = _checked_norm(reply, specs, frozen)
    bound = checks.max_update_norm
    if norm is None or bound is None or norm <= bound:
        return norm, reply
    if checks.beyond == "refuse":
        raise UpdateError(
            f"the update's norm, {norm:.6g}, is above the largest, {bound:g} "
            "(checks.max_update_norm)"
        )
    return norm, _scaled(reply, bound / norm)


def _scaled(reply: Message, factor: float) -> Message:
    """The reply with its update times ``factor``; whole numbers are rounded towards 0."""
    ((key, arrays),) = reply.content.array_records.items()
    scaled = {
        name: (tensor.double() * factor).to(tensor.dtype)
        for name, tensor in read_tensors(arrays).items()
    }
    reply.content = RecordDict({**reply.content, key: to_record(scaled)})
    return reply


def _checked_norm(
    reply: Message, specs: Mapping[str, TensorSpec], frozen: Collection[str]
) -> float | None:
    try:
        arrays = only_arrays(reply.content)
    except ValueError as error:
        raise UpdateError(str(error)) from error
    odd = sorted((set(arrays) ^ set(specs)) - (set(frozen) - set(arrays)))
    if odd:
        raise UpdateError(f"array {odd[0]} is missing or unknown ({len(odd)} names differ)")
    squares = of_each(
        lambda name: _checked_square(name, arrays[name], specs[name]),
        [name for name in specs if name in arrays],
        sum(map(size_of, arrays.values())),
    )
    masked = any(spec.dtype == MASKED for spec in specs.values())
    norm = math.sqrt(sum(squares))
    return None if masked else norm


def _checked_square(name: str, array: Array, spec: TensorSpec) -> float:
    try:
        numbers = elements_of(array)
    except (ValueError, RuntimeError, EOFError) as error:
        raise UpdateError(f"array {name} cannot be read: {error}") from error
    if numbers.dtype != spec.dtype or numbers.shape != spec.shape:
        raise UpdateError(
            f"array {name} is {numbers.dtype}{numbers.shape}, the model has "
            f"{spec.dtype}{spec.shape}"
        )
    if spec.dtype == MASKED:
        return 0.0
    square = numbers.square_norm()
    if not math.isfinite(square):
        raise UpdateError(f"array {name} holds NaN or infinite numbers")
    return square

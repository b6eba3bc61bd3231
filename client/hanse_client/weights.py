"""The model that came, and the one that the task makes, held against the policy and each other.

All of it comes before anything is charged, and before memory is taken for what is only asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain

import torch
from flwr.app import ArrayRecord
from hanse.errors import TaskError
from hanse.flower import read_tensor
from hanse.plain import plain
from hanse.task import AnyTask
from torch import Tensor

log = logging.getLogger("hanse.client")


def task_bytes(task: AnyTask) -> int | None:
    """The memory that a task's model takes, without taking it.

    Returns:
        Bytes; None if the model can only be made for real: its ``model`` reads tensors' values.

    Raises:
        TaskError: if there can be no such model.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = task.model()
    except (RuntimeError, TypeError, ValueError, OverflowError) as failed:
        if "meta" in str(failed):
            log.info("the task's model cannot be measured before it is made: %s", failed)
            return None
        raise TaskError(f"the task makes no model of these options: {failed}") from failed
    return sum(t.numel() * t.element_size() for t in chain(model.parameters(), model.buffers()))


def checked_weights(arrays: ArrayRecord, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that came, to be read only; refused if they are not of the task's model.

    Args:
        state: of the task's model.

    Raises:
        TaskError: naming the first array that does not fit.
    """
    odd = sorted(set(arrays) ^ set(state))
    if odd:
        raise _unfit(f"{odd[0]!r} is missing or unknown ({len(odd)} names differ)")
    weights = {}
    for name, own in state.items():
        try:
            came = read_tensor(arrays[name])
        except ValueError as unreadable:
            raise _unfit(f"{name!r} cannot be read: {unreadable}") from unreadable
        if came.shape != own.shape or not _alike(came, own):
            raise _unfit(
                f"{name!r} is {came.dtype}{tuple(came.shape)}, not {own.dtype}{tuple(own.shape)}"
            )
        if not bool(torch.isfinite(came).all()):
            raise _unfit(f"{name!r} holds NaN or infinite numbers")
        weights[name] = came
    return {name: weights[name] for name in arrays}


def _alike(came: Tensor, own: Tensor) -> bool:
    """Whether weights of one dtype may be sent in another: floats in other floats."""
    return came.dtype == own.dtype or (came.is_floating_point() and own.is_floating_point())


def _unfit(why: str) -> TaskError:
    return TaskError(
        f"the weights received do not fit the task's model: {plain(why, 500)}",
        remedy="Install the same version of the task at the server and at the site.",
    )

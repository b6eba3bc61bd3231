"""How many records go through a model at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

BUDGET = 2**30
"""Bytes for what the gradients of a part of a batch are made from, beside the weights: a GiB."""

SHARE_OF_GPU = 4
"""On a GPU it is a part of what is free: a step in many parts leaves it idle between them."""

FEW_SIZES = {"cuda"}
"""Types of devices whose libraries choose their kernels anew for each size of a batch that they
have not seen; and Poisson sampling gives another at each step."""

SIZES = 8
"""How many sizes there are on such a device from one to its double: so a batch has to grow by an
eighth at most."""

PILOT = 8
"""Records whose memory is measured before more are taken."""


@contextmanager
def saved_for_backward(parameters: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Within this, the bytes that autograd keeps for the backward pass, by storage; no weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def records_that_fit(records: int, saved: int, held: int, device: torch.device) -> int:
    """The most records that fit into the budget; a function of shapes and of the machine alone.

    Args:
        records: that were measured.
        saved: bytes that their forward pass kept for the backward pass; as many again are taken
            for the gradients that flow back.
        held: bytes that the backend held besides.
    """
    return max(1, _budget(device) * records // max(1, 2 * saved + held))


def step_of_sizes(records: int, device: torch.device) -> int:
    """How far apart the sizes of batches are that ``device`` should see, near ``records``."""
    if device.type not in FEW_SIZES:
        return 1
    return 1 << max(0, (records // SIZES).bit_length() - 1)


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return BUDGET
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + cached) // SHARE_OF_GPU

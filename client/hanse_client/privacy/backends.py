"""The backends by name, and which of them a model can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from hanse.errors import UnprovableModelError
from torch import nn

from hanse_client.privacy.bookkeeping.backend import BookkeepingBackend
from hanse_client.privacy.clipping import Backend, Clipping
from hanse_client.privacy.ghost import GhostBackend
from hanse_client.privacy.hooks import HooksBackend
from hanse_client.steps import RecordLoss

BackendName: TypeAlias = Literal["auto", "bookkeeping", "ghost", "hooks"]

BACKENDS: tuple[BackendName, ...] = ("bookkeeping", "ghost", "hooks")
"""What ``auto`` tries, in this order: that of time and memory."""

_MAKERS: dict[BackendName, Callable[[nn.Module, RecordLoss, Clipping], Backend]] = {
    "bookkeeping": BookkeepingBackend,
    "ghost": GhostBackend,
    "hooks": HooksBackend,
}


def make_backend(
    name: BackendName, model: nn.Module, loss: RecordLoss, clipping: Clipping
) -> Backend:
    """The backend of that name, on ``model`` until it is closed.

    ``auto`` is the first one that knows all trainable layers of the model; whether it is right
    about them, :func:`hanse_client.privacy.choice.choose_backend` finds out.

    Raises:
        UnprovableModelError: if it cannot train the model.
    """
    if name != "auto":
        return _MAKERS[name](model, loss, clipping)
    refusals = []
    for candidate in BACKENDS:
        try:
            return _MAKERS[candidate](model, loss, clipping)
        except UnprovableModelError as refusal:
            refusals.append(str(refusal))
    raise UnprovableModelError("; ".join(refusals))

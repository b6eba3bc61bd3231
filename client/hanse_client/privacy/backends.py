"""The backends by name, and which of them a model can have."""

from __future__ import annotations

from hanse.errors import UnprovableModelError
from torch import nn

from hanse_client.privacy.bookkeeping.backend import BookkeepingBackend
from hanse_client.privacy.clipping import Backend, Clipping
from hanse_client.privacy.replays import Replays
from hanse_client.privacy.settings import BackendName, Precision
from hanse_client.steps import RecordLoss

BACKENDS: tuple[BackendName, ...] = ("bookkeeping", "ghost", "hooks")
"""What ``auto`` tries, in this order: that of time and memory."""


def make_backend(
    name: BackendName,
    model: nn.Module,
    loss: RecordLoss,
    clipping: Clipping,
    precision: Precision = "float32",
    replays: Replays | None = None,
) -> Backend:
    """The backend of that name, on ``model`` until it is closed.

    ``bookkeeping`` alone knows what to do with ``replays``.

    ``auto`` is the first one that knows all trainable layers of the model; whether it is right
    about them, :func:`hanse_client.privacy.choice.choose_backend` finds out.

    Raises:
        UnprovableModelError: if it cannot train the model.
    """
    if name == "bookkeeping":
        return BookkeepingBackend(model, loss, clipping, precision, replays)
    if name == "auto":
        return _first(model, loss, clipping, precision, replays)
    if precision != "float32":
        raise UnprovableModelError(
            f"the backend {name!r} clips to more than the clipping norm in {precision}",
            remedy='Set engine.precision = "float32" in site.toml.',
        )
    # Opacus takes half as long to import as torch, and most models do without it.
    if name == "ghost":
        from hanse_client.privacy.ghost import GhostBackend

        return GhostBackend(model, loss, clipping)
    from hanse_client.privacy.hooks import HooksBackend

    return HooksBackend(model, loss, clipping)


def _first(
    model: nn.Module,
    loss: RecordLoss,
    clipping: Clipping,
    precision: Precision,
    replays: Replays | None,
) -> Backend:
    refusals = []
    for candidate in BACKENDS:
        try:
            return make_backend(candidate, model, loss, clipping, precision, replays)
        except UnprovableModelError as refusal:
            refusals.append(f"{candidate}: {refusal}")
    raise UnprovableModelError("; ".join(refusals))

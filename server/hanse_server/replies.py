"""The desk where replies are looked at before a strategy sees them, and accounts are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message
from flwr.app import Error as FlowerError
from hanse.errors import UpdateError
from hanse.flower import (
    WEIGHT,
    Envelope,
    error_label,
    only_arrays,
    open_envelope,
    to_tensor,
    to_tensors,
)
from torch import Tensor

from hanse_server.grid import HanseGrid
from hanse_server.metrics import ServerMetrics
from hanse_server.status import Awaited
from hanse_server.terms import checked_metrics, checked_terms, reason_of
from hanse_server.workspace import SiteRound

MASKED = torch.uint32
"""The dtype of masked updates; no model is of it."""


@dataclass(frozen=True)
class TensorSpec:
    """What an update's tensor must look like."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def specs_of(arrays: ArrayRecord) -> dict[str, TensorSpec]:
    """The names, dtypes and shapes of a model, that each update must have too."""
    tensors = to_tensors(arrays)
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def masked_specs(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """What masked updates of a model with ``specs`` look like: integers modulo 2^32.

    Of them no norm can be checked: each is uniformly random by itself.
    """
    return {name: TensorSpec(MASKED, spec.shape) for name, spec in specs.items()}


class ReplyDesk:
    """Passes replies of one exchange through, checked, and remembers what each site did.

    A reply that does not fit the model goes on as an error, so that no strategy folds it.

    Args:
        specs: the model's, for training replies; None for evaluation, which sends no arrays.
        deadline: seconds from now.
    """

    def __init__(
        self,
        messages: Iterable[Message],
        grid: HanseGrid,
        metrics: ServerMetrics,
        *,
        specs: Mapping[str, TensorSpec] | None,
        deadline: float,
    ) -> None:
        self._grid = grid
        self._metrics = metrics
        self._specs = specs
        self._started = time.time()
        self._until = self._started + deadline
        self._awaited = {grid.site_name(message.metadata.dst_node_id) for message in messages}
        self.sites: dict[str, SiteRound] = {}
        for site in self._awaited:
            metrics.awaited_since.labels(site).set(self._started)

    @property
    def results(self) -> int:
        """How many sites answered with a result so far."""
        return sum(site.outcome == "result" for site in self.sites.values())

    @property
    def awaited(self) -> tuple[Awaited, ...]:
        """Whose replies are still owed."""
        return tuple(
            Awaited(site=site, since=self._started, until=self._until)
            for site in sorted(self._awaited)
        )

    def pass_on(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield each reply as it arrives, checked and accounted for."""
        for reply in replies:
            site = self._grid.site_name(reply.metadata.src_node_id)
            checked, record = self._look_at(reply)
            self._close(site, record)
            yield checked
        for site in sorted(self._awaited):
            self._close(site, SiteRound(outcome="missing", seconds=time.time() - self._started))

    def _close(self, site: str, record: SiteRound) -> None:
        self._awaited.discard(site)
        self.sites[site] = record
        self._metrics.awaited_since.labels(site).set(0)
        self._metrics.replies.labels(site, record.outcome).inc()
        if record.update_norm is not None:
            self._metrics.update_norm.labels(site).set(record.update_norm)
        for name, gauge in (
            ("epsilon", self._metrics.epsilon_spent),
            ("epsilon_left", self._metrics.epsilon_left),
            ("noise_multiplier", self._metrics.noise_multiplier),
        ):
            if name in record.metrics:
                gauge.labels(site).set(record.metrics[name])

    def _look_at(self, reply: Message) -> tuple[Message, SiteRound]:
        seconds = time.time() - self._started
        if reply.has_error():
            label = error_label(reply.error)
            return reply, SiteRound(
                outcome=label, seconds=seconds, reason=reason_of(reply.error.reason, label)
            )
        try:
            metrics = checked_metrics(reply)
            terms = checked_terms(reply, metrics)
            norm = None if self._specs is None else _checked_norm(reply, self._specs)
        except UpdateError as unfit:
            reason = reason_of(unfit.message, unfit.label)
            record = SiteRound(outcome=unfit.label, seconds=seconds, reason=reason)
            return _as_error(reply, unfit), record
        weight = metrics.pop(WEIGHT)
        return reply, SiteRound(
            outcome="result",
            seconds=seconds,
            weight=weight,
            update_norm=norm,
            metrics=metrics,
            terms=terms,
        )


def _as_error(reply: Message, error: UpdateError) -> Message:
    envelope = Envelope.of(reply, reply.metadata.message_id)
    return open_envelope(envelope, FlowerError(error.exit_code, error.message))


def _checked_norm(reply: Message, specs: Mapping[str, TensorSpec]) -> float | None:
    """The L2 norm of an update that fits the model; None of a masked one."""
    try:
        arrays = only_arrays(reply.content)
    except ValueError as error:
        raise UpdateError(str(error)) from error
    if set(arrays) != set(specs):
        odd = sorted(set(arrays) ^ set(specs))
        raise UpdateError(f"array {odd[0]} is missing or unknown ({len(odd)} names differ)")
    squares = [_checked_square(name, arrays, spec) for name, spec in specs.items()]
    masked = any(spec.dtype == MASKED for spec in specs.values())
    return None if masked else math.sqrt(sum(squares))


def _checked_square(name: str, arrays: ArrayRecord, spec: TensorSpec) -> float:
    try:
        tensor: Tensor = to_tensor(arrays[name])
    except (ValueError, RuntimeError, EOFError) as error:
        raise UpdateError(f"array {name} cannot be read: {error}") from error
    if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
        raise UpdateError(
            f"array {name} is {tensor.dtype}{tuple(tensor.shape)}, the model has "
            f"{spec.dtype}{spec.shape}"
        )
    if spec.dtype == MASKED:
        return 0.0
    square = float(tensor.double().square().sum())
    if not math.isfinite(square):
        raise UpdateError(f"array {name} holds NaN or infinite numbers")
    return square

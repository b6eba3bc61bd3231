"""The engine of private training: clip each record's gradient, add noise to their sum, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType

import torch
from hanse.task import Examples
from torch import Tensor, nn

from hanse_client.plan import PrivateSteps
from hanse_client.privacy.ahead import NoiseAhead
from hanse_client.privacy.backends import make_backend
from hanse_client.privacy.clipping import Backend, ClippedSum, Clipping
from hanse_client.privacy.memory import (
    PILOT,
    records_that_fit,
    saved_for_backward,
    step_of_sizes,
)
from hanse_client.privacy.noise import NoiseSource, SecureNoise, draws, noised
from hanse_client.privacy.replays import Replays
from hanse_client.privacy.settings import BackendName, Precision
from hanse_client.steps import Outcome, RecordLoss, Stepper, trainable


class DpEngine:
    """A step of DP-SGD (Abadi et al. 2016, arXiv 1607.00133) on any of several backends.

    Guarantee: whatever the batch, the gradient that the optimiser gets is the sum of the
    records' gradients, each clipped to ``clipping_norm`` in L2, plus Gaussian noise of standard
    deviation ``noise_multiplier * clipping_norm`` in each coordinate, over ``batch_size``.
    Adding or removing one record moves the sum by at most ``clipping_norm``; one whose gradient
    is not finite adds nothing to it. With batches from
    :func:`hanse_client.privacy.sampling.poisson_batches`, empty ones included, that is the
    mechanism which :class:`hanse.privacy.accounting.Charge` describes. It assumes a model and a
    loss that pass :mod:`hanse_client.privacy.checks`.

    A batch that is too large for memory goes through the model in parts; their clipped sums are
    added up, and noise is added once.

    Args:
        batch_size: the nominal one, a public constant: the true sizes are private.
        pull: adds to the gradients, after the noise, what is no function of the records.
        backend: how the clipped sums are made; by default the first that knows the model.
        physical_batch: records in a part, at most; by a measure of the memory if None. Where a
            GPU has no room for so many, it becomes less.
        precision: of the passes through the model; norms and sums are made in float32. On a
            GPU torch's passes of ``float32`` may convolve in TF32, which the process says.
        noise: fresh :class:`SecureNoise` if None.
        replays: of this model, this loss and this clipping; none if None.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: RecordLoss,
        optimizer: Stepper,
        privacy: PrivateSteps,
        *,
        batch_size: int,
        pull: Callable[[], None],
        backend: BackendName = "auto",
        physical_batch: int | None = None,
        precision: Precision = "float32",
        noise: NoiseSource | None = None,
        replays: Replays | None = None,
    ) -> None:
        self._parameters = trainable(model)
        self._optimizer = optimizer
        self._batch_size = batch_size
        self._pull = pull
        self._clipping = Clipping(privacy.clipping_norm)
        self._deviation = privacy.noise_multiplier * privacy.clipping_norm
        device = self._parameters[0].device
        self._noise = NoiseAhead(SecureNoise() if noise is None else noise, device)
        self._draws = draws([parameter.detach() for parameter in self._parameters])
        self._replays = replays
        self.backend: Backend = make_backend(
            backend, model, loss, self._clipping, precision, replays
        )
        self.physical_batch = physical_batch

    def __enter__(self) -> DpEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, batch: Examples) -> Outcome:
        """One step of the optimiser on ``batch``, which may be empty."""
        for parameter in self._parameters:
            parameter.grad = None
        self._noise.begin(self._draws)
        sums, outcome = self._clipped_sum(batch)
        noised(sums, self._deviation, self._batch_size, self._noise)
        for parameter, gradient in zip(self._parameters, sums, strict=True):
            parameter.grad = gradient
        self._pull()
        self._optimizer.step()
        return outcome

    def close(self) -> None:
        """Free the gradients, and leave the model as it was."""
        self.backend.close()
        self._optimizer.zero_grad(set_to_none=True)

    def _clipped_sum(self, batch: Examples) -> tuple[Sequence[Tensor], Outcome]:
        total: ClippedSum | None = None
        start = 0
        while start < len(batch):
            most = self.physical_batch or PILOT
            most -= most % step_of_sizes(most, batch.targets.device)  # so that none grows beyond it
            part = batch.part(start, start + most)
            try:
                found = self._part_sum(part)
            except torch.OutOfMemoryError:  # somebody else has come to this GPU
                if len(part) == 1:
                    raise
                if self._replays is not None:
                    self._replays.clear()
                self.physical_batch = len(part) // 2
                continue
            total = found if total is None else total.plus(found)
            start += len(part)
        if total is None:
            sums = [torch.zeros_like(parameter) for parameter in self._parameters]
            return sums, Outcome(records=0, losses=batch.targets.new_zeros(0).float())
        clipped = self._clipping.clipped(total.norms)
        return total.sums, Outcome(records=len(batch), losses=total.losses, clipped=clipped)

    def _part_sum(self, part: Examples) -> ClippedSum:
        if self.physical_batch is not None:
            return self.backend.clipped_sum(part)
        resting = nullcontext() if self._replays is None else self._replays.resting()
        with resting, saved_for_backward(self._parameters) as saved:
            found = self.backend.clipped_sum(part)
        held, device = found.held, part.targets.device
        self.physical_batch = records_that_fit(len(part), sum(saved.values()), held, device)
        return found

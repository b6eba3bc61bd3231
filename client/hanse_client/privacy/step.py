"""The private step: clip each record's gradient, add noise to their sum, and take the step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from hanse.task import Examples
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from hanse_client.plan import PrivateSteps
from hanse_client.privacy.noise import noise_generator
from hanse_client.steps import Outcome, RecordLoss, trainable

PHYSICAL_BATCH = 256
"""Records whose gradients are held at once, at most."""

HELD_AT_ONCE = 2**28
"""Numbers in the gradients held at once: a GiB of float32; large models take fewer records."""


class PrivateStep:
    """A step of DP-SGD (Abadi et al. 2016, arXiv 1607.00133), on Opacus' hooks and optimiser.

    Guarantee: whatever the batch, the gradient that the optimiser gets is the sum of the
    records' gradients, each clipped to ``clipping_norm`` in L2, plus Gaussian noise of standard
    deviation ``noise_multiplier * clipping_norm`` in each coordinate, over ``batch_size``.
    Adding or removing one record moves the sum by at most ``clipping_norm``; one whose gradient
    is not finite adds nothing to it. With batches from
    :func:`hanse_client.privacy.sampling.poisson_batches`, empty ones included, that is the
    mechanism which :class:`hanse.privacy.accounting.Charge` describes. It assumes a model and a
    loss that pass :mod:`hanse_client.privacy.checks`.

    Args:
        batch_size: the nominal one, a public constant: the true sizes are private.
        pull: adds to the gradients, after the noise, what is no function of the records.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: RecordLoss,
        optimizer: torch.optim.Optimizer,
        privacy: PrivateSteps,
        *,
        batch_size: int,
        pull: Callable[[], None],
    ) -> None:
        self._model = model
        self._loss = loss
        self._parameters = trainable(model)
        size = sum(parameter.numel() for parameter in self._parameters)
        self._physical = max(1, min(PHYSICAL_BATCH, HELD_AT_ONCE // size))
        self._clipping_norm = privacy.clipping_norm
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.clipping_norm,
            expected_batch_size=batch_size,
            loss_reduction="mean",
            generator=noise_generator(self._parameters[0].device),
        )
        self._optimizer.attach_step_hook(lambda _: pull())

    def __call__(self, batch: Examples) -> Outcome:
        losses, clipped = [batch.targets.new_zeros(0, dtype=torch.float32)], 0
        parts = torch.split(torch.arange(len(batch)), self._physical)  # of none: one, empty
        for number, part in enumerate(parts, start=1):
            self._optimizer.zero_grad()
            if len(part) > 0:
                losses.append(self._backward(batch.take(part)))
            self._fill_in(len(part))
            clipped += self._count_clipped()
            self._optimizer.signal_skip_step(do_skip=number < len(parts))
            self._optimizer.step()
        return Outcome(records=len(batch), losses=torch.cat(losses), clipped=clipped)

    def _backward(self, part: Examples) -> Tensor:
        losses = self._loss(self._model(*part.inputs), part.targets)
        torch.autograd.backward(losses.sum())
        return losses.detach()

    def _fill_in(self, records: int) -> None:
        """Zeros for parameters that had no part in the batch: they get their noise too."""
        for parameter in self._parameters:
            if getattr(parameter, "grad_sample", None) is None:
                zero = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
                gradients = zero.expand(records, *parameter.shape)
                parameter.grad_sample = gradients  # type: ignore[attr-defined]

    def _count_clipped(self) -> int:
        """How many gradients Opacus will clip; those that it cannot are made zero."""
        norms = torch.stack(
            [
                gradients.reshape(len(gradients), parameter.numel()).norm(dim=1)
                for gradients, parameter in zip(
                    self._optimizer.grad_samples, self._parameters, strict=True
                )
            ]
        ).norm(dim=0)
        self._leave_out(~norms.isfinite())
        return int((~(norms <= self._clipping_norm)).sum())

    def _leave_out(self, boundless: Tensor) -> None:
        """Zeros for the records marked in ``boundless``, shape (B,).

        No factor brings an infinite gradient down to the clipping norm: one such record would
        make the whole update NaN, and weights can be chosen so that a certain record is one.
        """
        if not bool(boundless.any()):
            return
        for parameter, gradients in zip(
            self._parameters, self._optimizer.grad_samples, strict=True
        ):
            marked = boundless.reshape(-1, *[1] * parameter.dim())
            parameter.grad_sample = gradients.masked_fill(marked, 0.0)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad(set_to_none=True)


@contextmanager
def per_record_gradients(model: nn.Module) -> Iterator[None]:
    """While this lasts, a backward pass of summed losses leaves ``grad_sample`` (B, ...).

    The names in the model's ``state_dict`` stay what they are.
    """
    hooks = GradSampleHooks(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # Of the first layer, whose inputs are records and need no gradients of their own.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()

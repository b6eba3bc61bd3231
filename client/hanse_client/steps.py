"""One step of local training, and what all its kinds share: losses, optimisers, FedProx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from hanse.errors import CoupledLossError, TaskError
from hanse.task import AnyTask, Examples
from torch import Tensor, nn

from hanse_client.privacy.settings import Precision

RecordLoss = Callable[[Tensor, Tensor], Tensor]
"""Outputs (B, ...) and targets (B, ...) to the loss of each record, (B,)."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step saw, before it changed the weights.

    Attributes:
        losses: of its records, shape (B,), on the device of the step.
        clipped: how many of their gradients were clipped; 0 in a step without privacy. A tensor
            of one number on the device, as long as nobody needs to know.
    """

    records: int
    losses: Tensor
    clipped: Tensor | int = 0


class Stepper(Protocol):
    """An optimiser of a model's parameters, one of torch's or a :class:`LocalOptimizer`."""

    def step(self) -> object:
        """One step along the gradients that the parameters hold."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""


class Step(Protocol):
    """One step of an optimiser on one batch, in whichever way."""

    def __call__(self, batch: Examples) -> Outcome: ...


class PlainStep:
    """A step on the mean loss of a batch, without privacy.

    Args:
        pull: adds what does not depend on the batch to the gradients (see :func:`proximal_pull`).
        precision: of the passes through the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: RecordLoss,
        optimizer: Stepper,
        pull: Callable[[], None],
        precision: Precision = "float32",
    ) -> None:
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._pull = pull
        self._precision = precision

    def __call__(self, batch: Examples) -> Outcome:
        self._optimizer.zero_grad()
        losses = losses_of(self._model, self._loss, batch, self._precision)
        torch.autograd.backward(losses.mean())
        self._pull()
        self._optimizer.step()
        return Outcome(records=len(batch), losses=losses.detach())


def losses_of(model: nn.Module, loss: RecordLoss, batch: Examples, precision: Precision) -> Tensor:
    """The loss of each record, shape (B,), float32 whatever the precision of the pass."""
    if precision == "float32":
        return loss(model(*batch.inputs), batch.targets)
    with torch.autocast(batch.targets.device.type, torch.bfloat16):
        return loss(model(*batch.inputs), batch.targets).float()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes.

    Raises:
        TaskError: if there are none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TaskError("the task's model has no trainable parameters")
    return parameters


def record_loss(name: str, task: AnyTask) -> RecordLoss:
    """The loss that a job names, its shape checked at each call.

    Args:
        name: ``task``, ``cross_entropy`` or ``mse``.
    """
    of_batch = {"task": task.loss, "cross_entropy": _cross_entropy, "mse": _squared_error}[name]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = of_batch(outputs, targets)
        if losses.shape != (len(targets),):
            raise CoupledLossError(
                "the loss of B records is not of shape (B,)"  # B itself may be private
            )
        return losses

    return loss


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses.reshape(len(targets), -1).mean(dim=1)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.numel() != targets.numel():
        raise TaskError(
            f"training.loss = 'mse': outputs of shape {tuple(outputs.shape[1:])} a record do not "
            f"fit targets of shape {tuple(targets.shape[1:])}"
        )
    # Without the same shape, (B, 1) and (B,) would be compared all with all.
    squares = (outputs.reshape(targets.shape) - targets).square()
    return squares.reshape(len(targets), -1).mean(dim=1)


def proximal_pull(parameters: Sequence[nn.Parameter], mu: float) -> Callable[[], None]:
    """FedProx (Li et al. 2020, arXiv 1812.06127): adds ``mu * (w - w0)`` to the gradients.

    ``w0`` is what the parameters hold now. In a private step this comes after the noise: it is
    no function of the records, so it must be neither clipped nor scaled with them.
    """
    if mu == 0.0:
        return lambda: None
    start = [parameter.detach().clone() for parameter in parameters]

    def pull() -> None:
        for parameter, origin in zip(parameters, start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - origin, alpha=mu)

    return pull

"""Judging a model on records: the same arithmetic at the server and at a site."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hanse.errors import DataError, DivergedError, TaskError
from hanse.task import AnyTask, Examples, RecordMetric

LOSS = "loss"
"""The name of the mean of the task's loss."""

BATCH_SIZE = 1024


@torch.no_grad()
def predict(model: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    """The model's outputs for all N records, shape (N, ...), on the CPU, in evaluation mode.

    Raises:
        DataError: if there are no records.
    """
    if len(examples) == 0:
        raise DataError("there are no records to evaluate on")
    model.eval()
    outputs = []
    for start in range(0, len(examples), BATCH_SIZE):
        batch = examples.part(start, start + BATCH_SIZE)
        outputs.append(model(*batch.to(device).inputs).cpu())
    return torch.cat(outputs)


def evaluate(
    task: AnyTask, model: nn.Module, examples: Examples, device: torch.device
) -> dict[str, float]:
    """The mean of the task's loss over ``examples`` as ``loss``, and the task's metrics.

    Args:
        model: the task's model on ``device``, holding the weights to judge.

    Raises:
        DataError: if there are no records.
        DivergedError: if the loss is not finite.
    """
    outputs, targets = predict(model, examples, device), examples.targets.cpu()
    return {LOSS: mean_loss(task, outputs, targets), **task.metrics(outputs, targets)}


def mean_loss(task: AnyTask, outputs: Tensor, targets: Tensor) -> float:
    """The mean of the task's loss over all N records.

    Raises:
        DivergedError: if it is not finite.
    """
    loss = float(task.loss(outputs, targets).double().mean())
    if not math.isfinite(loss):
        raise DivergedError("the model's loss on the held-out records is not finite")
    return loss


def record_metrics(task: AnyTask, *, loss_bound: float) -> Mapping[str, RecordMetric]:
    """The task's metrics that are means over records, and its loss, clipped to ``loss_bound``."""
    return {LOSS: RecordMetric(values=task.loss, bound=loss_bound), **task.record_metrics()}


def shares(metric: RecordMetric, outputs: Tensor, targets: Tensor) -> Tensor:
    """Each record's value over its bound, float64 of shape (N,), within [0, 1] whatever it was.

    Raises:
        TaskError: if there is not one value a record.
    """
    values = metric.values(outputs, targets)
    if values.shape != (len(targets),):
        raise TaskError("the values of N records are not of shape (N,)")  # N may be private
    return clipped_shares(values, metric.bound)


def clipped_shares(values: Tensor, bound: float) -> Tensor:
    """``values``, shape (N,), clipped to [0, bound] and over it, in float64; NaN becomes 1."""
    finite = values.detach().cpu().double().nan_to_num(nan=bound, posinf=bound, neginf=0.0)
    return finite.clamp(0.0, bound) / bound

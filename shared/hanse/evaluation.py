"""Judging a model on records: the same arithmetic at the server and at a site."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hanse.errors import DataError, DivergedError
from hanse.task import AnyTask, Examples

BATCH_SIZE = 1024


@torch.no_grad()
def predict(model: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    """The model's outputs for all N records, shape (N, ...), on the CPU, in evaluation mode."""
    model.eval()
    outputs = []
    for start in range(0, len(examples), BATCH_SIZE):
        batch = examples.take(torch.arange(start, min(start + BATCH_SIZE, len(examples))))
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
    if len(examples) == 0:
        raise DataError("there are no records to evaluate on")
    outputs, targets = predict(model, examples, device), examples.targets.cpu()
    loss = float(task.loss(outputs, targets).double().mean())
    if not math.isfinite(loss):
        raise DivergedError("the model's loss on the held-out records is not finite")
    return {"loss": loss, **task.metrics(outputs, targets)}

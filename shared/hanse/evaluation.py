"""Judging a model on records: the same arithmetic at the server and at a site."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hanse.errors import DataError
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
    task: AnyTask,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    examples: Examples,
    device: torch.device,
) -> dict[str, float]:
    """Mean ``loss`` and the task's metrics of ``weights`` over ``examples``; finite ones only.

    Args:
        model: the task's model on ``device``; it is left holding ``weights``.

    Raises:
        DataError: if there are no records.
    """
    if len(examples) == 0:
        raise DataError("there are no records to evaluate on")
    model.load_state_dict(weights)
    outputs = predict(model, examples, device)
    metrics = {"loss": float(task.loss(outputs, examples.targets).double().mean())}
    metrics |= task.metrics(outputs, examples.targets)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}

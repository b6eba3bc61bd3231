"""Metrics over all records of an evaluation, computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def classification(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """``accuracy``, and for two classes ``auc`` where both occur.

    Args:
        outputs: logits, shape (N, K).
        targets: class numbers, shape (N,).
    """
    if len(targets) == 0:
        return {}
    scores = {"accuracy": correct(outputs, targets).mean().item()}
    if outputs.shape[1] == 2 and 0 < int(targets.sum()) < len(targets):
        scores["auc"] = area_under_curve(outputs[:, 1] - outputs[:, 0], targets == 1)
    return scores


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for each record whose class gets the highest score and 0 for others, shape (N,).

    Args:
        outputs: logits, shape (N, K).
        targets: class numbers, shape (N,).
    """
    return (outputs.argmax(dim=1) == targets).double()


def absolute_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """How far each prediction is off, in the targets' unit, shape (N,).

    Args:
        outputs: predictions, shape (N, 1).
        targets: true values, shape (N, 1).
    """
    return (outputs.double() - targets.double()).abs().squeeze(1)


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve, as the Mann-Whitney statistic; ties count one half.

    Args:
        scores: shape (N,); higher means more probably positive.
        positive: bool, shape (N,); both values must occur.
    """
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean_rank = last - (counts.double() - 1) / 2
    positives = int(positive.sum())
    negatives = len(positive) - positives
    wins = float(mean_rank[place][positive].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def regression(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """``mae`` and ``rmse`` in the targets' unit, and ``r2`` where the targets vary.

    Args:
        outputs: predictions, shape (N, 1).
        targets: true values, shape (N, 1).
    """
    if len(targets) == 0:
        return {}
    errors = outputs.double() - targets.double()
    squares = errors.square().sum().item()
    scores = {"mae": errors.abs().mean().item(), "rmse": (squares / len(targets)) ** 0.5}
    spread = (targets.double() - targets.double().mean()).square().sum().item()
    if spread > 0:
        scores["r2"] = 1 - squares / spread
    return scores

"""Judging a model on held-out records, and what may be told of it: a release like any other."""

from __future__ import annotations

from hanse.errors import TaskError
from hanse.evaluation import LOSS, mean_loss, record_metrics, shares
from hanse.task import AnyTask
from torch import Tensor

from hanse_client.noised import noised_means
from hanse_client.privacy.noise import NoiseSource
from hanse_client.release import PUBLIC_METRICS, NoisedMetrics, leaves_exact
from hanse_client.site import Policy


def noised_metrics(
    task: AnyTask, outputs: Tensor, targets: Tensor, noised: NoisedMetrics, *, noise: NoiseSource
) -> dict[str, float]:
    """The metrics that leave with noise; the guarantee is that of :func:`noised_means`.

    Whatever the model's outputs are, infinite or NaN, there is an answer: that a loss is not
    finite would tell something of a record without noise.
    """
    bounded = record_metrics(task, loss_bound=noised.loss_bound)
    sums = {name: float(shares(bounded[name], outputs, targets).sum()) for name in noised.names}
    means = noised_means(noised, sums, len(targets), noise=noise)
    return {name: mean * bounded[name].bound for name, mean in means.items()}


def exact_metrics(
    task: AnyTask, outputs: Tensor, targets: Tensor, policy: Policy
) -> dict[str, float]:
    """The metrics that ``policy`` lets out as they are, outside epsilon; no other is computed.

    Raises:
        DivergedError: if the loss is one of them and not finite.
        TaskError: if the task has one that is no number.
    """
    told = {}
    if leaves_exact(policy, LOSS):
        told[LOSS] = mean_loss(task, outputs, targets)
    if any(name not in (LOSS, *PUBLIC_METRICS) for name in policy.release_exact):
        metrics = task.metrics(outputs, targets)
        told |= {name: metrics[name] for name in metrics if leaves_exact(policy, name)}
    odd = next((name for name, value in told.items() if not _is_number(value)), None)
    if odd is not None:
        raise TaskError(
            f"metric {odd!r} of the task is a {type(told[odd]).__name__}, not a number",
            remedy="`hanse task check` tells what is wrong with a task.",
        )
    return told


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

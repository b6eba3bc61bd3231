"""The Flower ClientApp of Hanse: train, evaluate, query, behind the gates of the site.

A handler sorts its metrics by the way in which they came about (:class:`Kind`), and leaves it to
the last gate what of them goes out.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import flwr
import hanse
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from hanse.errors import DataError
from hanse.flower import (
    ARRAYS,
    CONFIG,
    METRICS,
    WEIGHT,
    filled,
    only_arrays,
    to_metrics,
    to_record,
)
from hanse.secagg.messages import STAGES
from hanse.task import task_digest, task_names

from hanse_client import device
from hanse_client.gates import gates
from hanse_client.judging import exact_metrics, noised_metrics
from hanse_client.release import CLIPPED_FRACTION, TRAIN_LOSS, UPDATE_NORM, Kind
from hanse_client.runtime import Resolve, SiteRuntime

_SPENT = ("epsilon", "epsilon_left", "delta")  # what an evaluation that is charged for changes


def make_client_app(resolve: Resolve, *, outermost: Sequence[Mod] = ()) -> ClientApp:
    """The ClientApp of the sites that ``resolve`` knows.

    Args:
        outermost: what a message passes before the gates, and its reply after them.
    """
    app = ClientApp(mods=[*outermost, *gates(resolve)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_train(resolve(context), message), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(_evaluate(resolve(context), message), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({CONFIG: describe(resolve(context))}), reply_to=message)

    def stage(message: Message, context: Context) -> Message:
        return Message(RecordDict({CONFIG: resolve(context).masked(message)}), reply_to=message)

    for name in STAGES:
        app.query(name.partition(".")[2])(stage)

    return app


def _train(runtime: SiteRuntime, message: Message) -> RecordDict:
    order, metrics = runtime.order, runtime.metrics
    with metrics.phases.during("training"):
        weights = order.trainer.receive(only_arrays(message.content))
        result = order.trainer.train(weights, order.records.train, order.plan)
    metrics.update_norm.set(result.update_norm)
    metrics.dp_backend.clear()
    if result.backend is not None:
        metrics.dp_backend.labels(backend=result.backend).set(1.0)
    exact = {}
    if result.train_loss is not None:
        metrics.train_loss.set(result.train_loss)
        exact[TRAIN_LOSS] = result.train_loss
    if result.clipped_fraction is not None:
        metrics.clipped_fraction.set(result.clipped_fraction)
        exact[CLIPPED_FRACTION] = result.clipped_fraction
    public: dict[str, float] = {}
    if order.protected:
        public = {**runtime.statement, "steps": order.plan.steps, UPDATE_NORM: result.update_norm}
    else:
        exact[UPDATE_NORM] = result.update_norm
    told = _told(runtime, len(order.records.train), public, result.noised, exact)
    told[ARRAYS] = to_record(result.update, adopt=True)
    return told


def _evaluate(runtime: SiteRuntime, message: Message) -> RecordDict:
    order = runtime.order
    held_out = order.records.held_out
    if held_out is None:
        raise DataError(
            "this site keeps no records back to evaluate on",
            remedy="Set data.holdout or data.test in site.toml.",
        )
    task, policy, noised, exact = order.trainer.task, runtime.site.policy, {}, {}
    with runtime.metrics.phases.during("evaluating"):
        weights = order.trainer.receive(only_arrays(message.content))
        outputs, targets = order.trainer.predict(weights, held_out), held_out.targets.cpu()
        if order.noised is not None:
            noise = order.trainer.noise
            noised = noised_metrics(task, outputs, targets, order.noised, noise=noise)
        exact = exact_metrics(task, outputs, targets, policy)
    public = {name: runtime.statement[name] for name in _SPENT if name in runtime.statement}
    return _told(runtime, len(held_out), public, noised, exact)


def _told(
    runtime: SiteRuntime,
    records: int,
    public: Mapping[str, float],
    noised: Mapping[str, float],
    exact: Mapping[str, float],
) -> RecordDict:
    """What there is to tell, by the way in which it came about; the last gate chooses of it."""
    kinds = {Kind.PUBLIC: public, Kind.NOISED: noised, Kind.EXACT: exact}
    told = {METRICS: to_metrics({WEIGHT: runtime.weight(records)})}
    told |= {kind.value: to_metrics(values) for kind, values in kinds.items() if values}
    return filled(RecordDict, told)


def describe(runtime: SiteRuntime) -> ConfigRecord:
    """What a site is: versions, device, tasks with their digests, and what its policy allows."""
    policy = runtime.site.policy
    installed = [task.name for task in policy.tasks if task.name in task_names()]
    return ConfigRecord(
        {
            "site": runtime.site.name,
            "hanse": hanse.__version__,
            "flwr": flwr.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": device.describe(runtime.device),
            "tasks": [task.name for task in policy.tasks],
            "task_digests": [f"{name}={task_digest(name)}" for name in installed],
            "max_steps": policy.max_steps,
            "min_noise_multiplier": policy.min_noise_multiplier,
            "allow_training_without_privacy": policy.allow_training_without_privacy,
            "release": list(policy.release),
            "release_exact": list(policy.release_exact),
            "noise_of_evaluation": policy.noise.evaluation,
            "noise_of_training_metrics": policy.noise.training,
            "loss_bound": policy.noise.loss_bound,
            "budget_epsilon": runtime.site.budget.epsilon,
            "budget_delta": runtime.site.budget.delta,
        }
    )

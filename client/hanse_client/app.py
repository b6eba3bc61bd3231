"""The Flower ClientApp of Hanse: train, evaluate, query, behind the gates of the site."""

from __future__ import annotations

import platform

import flwr
import hanse
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hanse.errors import DataError
from hanse.flower import (
    ARRAYS,
    CONFIG,
    METRICS,
    WEIGHT,
    only_arrays,
    to_metrics,
    to_record,
    to_tensors,
)
from hanse.task import task_digest, task_names

from hanse_client import device
from hanse_client.gates import gates
from hanse_client.runtime import Resolve, SiteRuntime


def make_client_app(resolve: Resolve) -> ClientApp:
    """The ClientApp of the sites that ``resolve`` knows."""
    app = ClientApp(mods=gates(resolve))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_train(resolve(context), message), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(_evaluate(resolve(context), message), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({CONFIG: describe(resolve(context))}), reply_to=message)

    return app


def _train(runtime: SiteRuntime, message: Message) -> RecordDict:
    order, metrics = runtime.order, runtime.metrics
    with metrics.phases.during("training"):
        result = order.trainer.train(
            to_tensors(only_arrays(message.content)), order.records.train, order.plan
        )
    metrics.update_norm.set(result.update_norm)
    told = {
        WEIGHT: runtime.weight(len(order.records.train)),
        "update_norm": result.update_norm,
    }
    if result.train_loss is not None:
        metrics.train_loss.set(result.train_loss)
        told["train_loss"] = result.train_loss
    if result.clipped_fraction is not None:
        metrics.clipped_fraction.set(result.clipped_fraction)
        told["clipped_fraction"] = result.clipped_fraction
    told |= runtime.statement
    return RecordDict({ARRAYS: to_record(result.update), METRICS: to_metrics(told)})


def _evaluate(runtime: SiteRuntime, message: Message) -> RecordDict:
    order = runtime.order
    held_out = order.records.held_out
    if held_out is None:
        raise DataError(
            "this site keeps no records back to evaluate on",
            remedy="Set data.holdout or data.test in site.toml.",
        )
    with runtime.metrics.phases.during("evaluating"):
        told = order.trainer.evaluate(to_tensors(only_arrays(message.content)), held_out)
    told[WEIGHT] = runtime.weight(len(held_out))
    return RecordDict({METRICS: to_metrics(told)})


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
            "budget_epsilon": runtime.site.budget.epsilon,
            "budget_delta": runtime.site.budget.delta,
        }
    )

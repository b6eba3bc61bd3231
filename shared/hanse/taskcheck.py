"""Trying a task out on sample records, before any site sees it."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hanse.errors import HanseError, MissingExtraError, TaskError
from hanse.flower import to_record, to_tensors
from hanse.task import AnyTask, Examples, load_task

PROOF = "hanse_client.privacy.checks"
"""What a site asks of a model before private training; by name, as this package imports no side."""

_PROBED = 32
_FAULTS = (  # what wrong code of others raises
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

RecordLoss = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the check: ``task``, ``model``, ``weights``, ``data``, ``loss``, ``gradients``,
            ``metrics``, ``noise``, ``augmentation`` or ``privacy``.
        message: what was found, or what is wrong.
        remedy: what to do about it; empty where all is well.
    """

    name: str
    ok: bool
    message: str
    remedy: str = ""


def check_task(
    name: str,
    options: Mapping[str, Any],
    sample: Path | None = None,
    loss: RecordLoss | None = None,
) -> list[Finding]:
    """Try a task the way a site would: load it, build it, read data, train a step, judge it.

    Args:
        name: an installed task, or ``package.module:Class``.
        options: ``[task.options]`` of a job.
        sample: records to try it on; without them only the task and its model are tried.
        loss: the loss that the job trains with, of each record; the task's own if left out.

    Returns:
        One finding a check, in the order they were made. A check that cannot go on without an
        earlier one is left out where that failed.
    """
    return list(_findings(name, options, sample, loss))


def _findings(
    name: str, options: Mapping[str, Any], sample: Path | None, loss: RecordLoss | None
) -> Iterator[Finding]:
    task = yield from _try("task", lambda: load_task(name, options), lambda _: "loads")
    if task is None:
        return
    model = yield from _try("model", lambda: _build(task), _size)
    if model is None:
        return
    yield from _try("weights", lambda: _round_trip(model), lambda _: "travel and come back whole")
    if sample is None:
        return
    examples = yield from _try("data", lambda: _read(task, sample), _shapes)
    if examples is None:
        return
    loss = loss or task.loss
    yield from _tried_on(task, model, examples, loss)


def _tried_on(
    task: AnyTask, model: nn.Module, examples: Examples, loss: RecordLoss
) -> Iterator[Finding]:
    probe = examples.part(0, _PROBED)
    losses = yield from _try(
        "loss", lambda: _losses(model, probe, loss), lambda found: f"{found.mean():.4g} on average"
    )
    if losses is None:
        return
    yield from _try("gradients", lambda: _gradients(model, losses), lambda _: "reach every weight")
    yield from _try("metrics", lambda: _metrics(task, model, probe), _named)
    yield from _try("noise", lambda: _record_metrics(task, model, probe), _noised)
    yield from _try("augmentation", lambda: _augmented(task, probe), lambda _: "keeps the shapes")
    yield from _try(
        "privacy", lambda: _prove(model, probe, loss), lambda _: "each record stands on its own"
    )


def _try(
    name: str, check: Callable[[], T], told: Callable[[T], str]
) -> Generator[Finding, None, T | None]:
    """Yield what ``check`` found; return its result, or None if it failed."""
    try:
        result = check()
        message = told(result)
    except HanseError as error:
        yield Finding(name=name, ok=False, message=error.message, remedy=error.remedy)
        return None
    except _FAULTS as fault:
        yield Finding(
            name=name,
            ok=False,
            message=f"{type(fault).__name__}: {fault}",
            remedy="Mend the task; the message is its own.",
        )
        return None
    yield Finding(name=name, ok=True, message=message)
    return result


def _build(task: AnyTask) -> nn.Module:
    model = task.model()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError(
            "the model has no trainable parameters", remedy="Leave requires_grad on in some."
        )
    again = task.model().state_dict()
    state = model.state_dict()
    if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in again.items()}:
        raise TaskError(
            "two models of the task differ in the names or shapes of their weights",
            remedy="Let the options alone decide the model.",
        )
    return model


def _size(model: nn.Module) -> str:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return f"{trainable:,} trainable parameters, {size / 1e6:.2f} MB to send"


def _round_trip(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(to_tensors(to_record(before)))
    for name, tensor in model.state_dict().items():
        if tensor.dtype != before[name].dtype or not torch.equal(tensor, before[name]):
            raise TaskError(
                f"the weight {name!r} comes back changed from its way to a site",
                remedy="Keep finite numbers of a common dtype in the model's state.",
            )


def _read(task: AnyTask, sample: Path) -> Examples:
    examples = task.read(sample)
    if len(examples) == 0:
        raise TaskError(f"{sample.name}: no records were read", remedy="Give a longer sample.")
    for tensor in (*examples.inputs, examples.targets):
        if not torch.isfinite(tensor).all():
            raise TaskError(
                f"{sample.name}: NaN or infinite numbers were read",
                remedy="Refuse or replace them in the task's read().",
            )
    return examples


def _shapes(examples: Examples) -> str:
    inputs = ", ".join(f"{_of(tensor)}" for tensor in examples.inputs)
    return f"{len(examples)} records: inputs {inputs}, targets {_of(examples.targets)}"


def _of(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape[1:])}"


def _losses(model: nn.Module, probe: Examples, loss: RecordLoss) -> Tensor:
    losses = loss(model(*probe.inputs), probe.targets)
    if losses.shape != (len(probe),):
        raise TaskError(
            f"the loss of {len(probe)} records has the shape {list(losses.shape)}",
            remedy=f"Return one loss a record, [{len(probe)}] here, without reduction.",
        )
    if not torch.isfinite(losses).all():
        raise TaskError(
            "the loss of a fresh model is NaN or infinite", remedy="Scale the inputs, or the loss."
        )
    return losses


def _gradients(model: nn.Module, losses: Tensor) -> None:
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(losses.mean(), list(weights.values()), allow_unused=True)
    idle = [name for name, found in zip(weights, gradients, strict=True) if found is None]
    if idle:
        raise TaskError(
            f"no gradient reaches {', '.join(idle)}",
            remedy="Use these layers in forward(), or set requires_grad to False.",
        )


def _metrics(task: AnyTask, model: nn.Module, probe: Examples) -> dict[str, float]:
    with torch.no_grad():
        metrics = task.metrics(model.eval()(*probe.inputs), probe.targets)
    model.train()
    wrong = [
        n for n, v in metrics.items() if not isinstance(v, int | float) or not math.isfinite(v)
    ]
    if wrong:
        raise TaskError(
            f"metrics that are no finite numbers: {', '.join(wrong)}",
            remedy="Return floats, and leave out what cannot be computed.",
        )
    return metrics


def _named(metrics: Mapping[str, float]) -> str:
    return ", ".join(metrics) or "none but the loss"


def _record_metrics(task: AnyTask, model: nn.Module, probe: Examples) -> list[str]:
    """The names of the metrics that can be noised, each held against what it declares."""
    with torch.no_grad():
        outputs = model.eval()(*probe.inputs)
    model.train()
    whole = task.metrics(outputs, probe.targets)
    declared = task.record_metrics()
    for name, metric in declared.items():
        values = metric.values(outputs, probe.targets)
        if values.shape != (len(probe),):
            raise TaskError(
                f"record_metrics: {name} of {len(probe)} records has the shape "
                f"{list(values.shape)}",
                remedy=f"Return one value a record, [{len(probe)}] here.",
            )
        outside = (values < 0) | (values > metric.bound)
        if not torch.isfinite(values).all() or bool(outside.any()):
            raise TaskError(
                f"record_metrics: {name} has values outside [0, {metric.bound:g}]",
                remedy="Declare the bound that holds for all records; sites clip to it.",
            )
        alone = torch.cat(
            [metric.values(outputs[i : i + 1], probe.targets[i : i + 1]) for i in range(len(probe))]
        )
        if not torch.allclose(alone.double(), values.double(), rtol=1e-4, atol=1e-6):
            raise TaskError(
                f"record_metrics: {name} of a record depends on the other records",
                remedy="Compute record i's value from outputs[i] and targets[i] alone.",
            )
        mean = float(values.double().mean())  # clipping may have made it less than the whole
        if name in whole and mean > whole[name] * (1 + 1e-4) + 1e-6:
            raise TaskError(
                f"record_metrics: {name} is {mean:.6g} on average, and only {whole[name]:.6g} "
                "in metrics()",
                remedy="Let one name mean one thing.",
            )
    return list(declared)


def _noised(names: list[str]) -> str:
    return f"can be put on {', '.join(['the loss', *names])}"


def _augmented(task: AnyTask, probe: Examples) -> None:
    inputs = task.augment(probe.inputs, torch.Generator().manual_seed(0))
    before = [(tensor.shape, tensor.dtype) for tensor in probe.inputs]
    if [(tensor.shape, tensor.dtype) for tensor in inputs] != before:
        raise TaskError(
            "augment() changes the inputs' number, shapes or dtypes",
            remedy="Return one tensor for each input, like it in shape and dtype.",
        )


def _prove(model: nn.Module, probe: Examples, loss: RecordLoss) -> None:
    if importlib.util.find_spec("opacus") is None:
        raise MissingExtraError(
            "not checked: a site's own checks are not installed here",
            remedy='Install them with `pip install "hanse[client]"`.',
        )
    proof = importlib.import_module(PROOF)
    proof.check_provable(model)
    proof.check_per_example(model, loss, probe)

"""Whether the guarantee can be proved of a model and a loss, before they see a record.

The checks run on made-up records of the data's types and shapes, so that their outcome tells
nothing about the data and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from hanse.errors import CoupledLossError, TaskError, UnprovableModelError
from hanse.task import AnyTask, Examples, RecordValues
from torch import Tensor, nn

from hanse_client.privacy.probe import (
    PROBED,
    DropoutAtRest,
    Tried,
    alike,
    alike_gradients,
    another,
    made_up,
    probe_of,
    seeded,
    tried,
)
from hanse_client.steps import RecordLoss

_BATCH_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_PRECISE = (torch.float32, torch.float64)


def check_provable(model: nn.Module) -> None:
    """Refuse layers by type, and precisions in which clipping does not hold.

    Batch statistics mix the records of a batch, and running ones leave with the model: frozen
    or without weights of their own too, whatever mode they are in. A table with ``max_norm``
    shrinks the rows that a batch looks up, frozen or not, and no noise hides which.

    Raises:
        UnprovableModelError: naming the layer or parameter.
    """
    for name, module in model.named_modules():
        running = ("running_mean", "running_var")
        if isinstance(module, _BATCH_STATISTICS) or any(
            getattr(module, statistic, None) is not None for statistic in running
        ):
            raise UnprovableModelError(
                f"layer {name or 'model'!r} ({type(module).__name__}) keeps statistics of batches"
            )
        if getattr(module, "max_norm", None) is not None:
            raise UnprovableModelError(
                f"layer {name or 'model'!r} ({type(module).__name__}) has max_norm: it changes its "
                "table by the records that it sees",
                remedy="Leave max_norm out.",
            )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in _PRECISE:
            raise UnprovableModelError(
                f"parameter {name!r} is {parameter.dtype}: gradients clipped in less than float32 "
                "exceed the clipping norm",
                remedy="Keep the model's trainable parameters in float32.",
            )


def check_per_example(model: nn.Module, loss: RecordLoss, examples: Examples) -> None:
    """Try on a few made-up records that each one stands on its own.

    Leaving one out must change neither the outputs, nor the losses, nor the gradients of the
    others, and no more must another record in its place; no buffer and no parameter may change
    in a forward pass. The model is tried in evaluation mode, and in training mode with dropout
    at rest. Where it is random even so, the records cannot be compared without one of them, but
    with another in its place they can: torch's seed is the same.

    Args:
        examples: whose types and shapes are taken, and nothing else.

    Raises:
        UnprovableModelError: if the model mixes records, or its randomness is not torch's.
        CoupledLossError: if the loss does.
        TaskError: if the loss of the made-up records is not finite.
    """
    probe, batch = probe_of(model), made_up(examples)
    with seeded():
        _check_removal(probe.eval(), loss, batch)
        probe.train()
        with DropoutAtRest():
            if _repeats_itself(probe, batch):
                _check_removal(probe, loss, batch)
        _check_replacement(probe, loss, batch)
        _check_state(probe, batch)


def check_augmentation(task: AnyTask, examples: Examples) -> None:
    """Try on a few made-up records that augmenting one changes no other.

    With the same randomness, another record in one place must leave the rest as they are.

    Args:
        examples: whose types and shapes are taken, and nothing else.

    Raises:
        UnprovableModelError: if it mixes records.
    """
    batch = made_up(examples)

    def augmented(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept = tuple(tensor.clone() for tensor in inputs)  # it may work in place
        return task.augment(kept, torch.Generator().manual_seed(0))

    expected = augmented(batch.inputs)
    for changed in range(PROBED):
        others = torch.arange(PROBED) != changed
        found = augmented(another(batch, changed).inputs)
        for before, after in zip(expected, found, strict=True):
            if len(after) != PROBED or not torch.equal(before[others], after[others]):
                raise UnprovableModelError(
                    "the task's augmentation of a record depends on the other records of its batch",
                    remedy="Augment each record on its own, or set training.augment = false.",
                )


def check_values(model: nn.Module, values: Iterable[RecordValues], examples: Examples) -> None:
    """Try on a few made-up records that what is computed of each stands on its own.

    Leaving one out must change neither the outputs of ``model``, in evaluation mode, nor any of
    ``values`` of the others.

    Args:
        examples: whose types and shapes are taken, and nothing else.

    Raises:
        UnprovableModelError: if something mixes records.
    """
    probe, batch = probe_of(model).eval(), made_up(examples)

    def of(records: Examples) -> list[Tensor]:
        with torch.no_grad():
            outputs = probe(*records.inputs)
            return [outputs, *(each(outputs, records.targets) for each in values)]

    values = tuple(values)
    whole = of(batch)
    for removed in range(PROBED):
        rest = torch.tensor([i for i in range(PROBED) if i != removed])
        for before, after in zip(whole, of(batch.take(rest)), strict=True):
            if len(before) != PROBED or not alike(before[rest], after):
                raise UnprovableModelError(
                    "a model's output or a metric of a record depends on the other records: it "
                    "cannot be released with noise",
                    remedy="Compute record i's output and value from record i alone.",
                )


def _repeats_itself(model: nn.Module, batch: Examples) -> bool:
    with torch.no_grad():
        return torch.equal(model(*batch.inputs), model(*batch.inputs))


def _check_removal(model: nn.Module, loss: RecordLoss, batch: Examples) -> None:
    for kept in range(PROBED):
        whole = tried(model, loss, batch, kept)
        if not torch.isfinite(whole.losses).all():
            raise TaskError(
                "the loss of made-up records (floats in (0, 1), integers 0 and 1) is not finite",
                remedy="The loss must be finite for every record of the declared types and shapes.",
            )
        for removed in range(PROBED):
            if removed != kept:
                _compare_without(removed, kept, whole, model, loss, batch)


def _compare_without(
    removed: int, kept: int, whole: Tried, model: nn.Module, loss: RecordLoss, batch: Examples
) -> None:
    """With one record left out, the others must be as before, and so the gradient of ``kept``."""
    rest = [record for record in range(PROBED) if record != removed]
    try:
        others = tried(model, loss, batch.take(torch.tensor(rest)), rest.index(kept))
    except (RuntimeError, ValueError, IndexError) as error:
        raise CoupledLossError(
            f"the loss of {PROBED} records can be had, and not that of {PROBED - 1} of them"
        ) from error
    if len(whole.outputs) == PROBED and not alike(whole.outputs[rest], others.outputs):
        raise UnprovableModelError(
            "the model's output for a record depends on the other records of its batch"
        )
    same_losses = alike(whole.losses[rest], others.losses)
    if not (same_losses and alike_gradients(whole.gradient, others.gradient)):
        raise CoupledLossError("leaving one record out of a batch changes the others' losses")


def _check_replacement(model: nn.Module, loss: RecordLoss, batch: Examples) -> None:
    """With the same randomness, another record in one place must leave the rest as they are."""
    for kept in range(PROBED):
        with seeded():
            expected = tried(model, loss, batch, kept)
        for changed in (None, *range(PROBED)):
            if changed == kept:
                continue
            with seeded():
                altered = batch if changed is None else another(batch, changed)
                found = tried(model, loss, altered, kept)
            others = torch.arange(PROBED) != (-1 if changed is None else changed)
            same = alike(expected.losses[others], found.losses[others])
            if len(expected.outputs) == PROBED:
                same = same and alike(expected.outputs[others], found.outputs[others])
            if not (same and alike_gradients(expected.gradient, found.gradient)):
                raise UnprovableModelError(
                    "the model's randomness is not torch's, so that it cannot be tried"
                    if changed is None
                    else "the model's output for a record depends on the other records of its batch"
                )


def _check_state(model: nn.Module, batch: Examples) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model(*batch.inputs)
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            kind = "buffer" if name in buffers else "parameter"
            raise UnprovableModelError(
                f"{kind} {name!r} changes when the model sees records, and leaves with it",
                remedy="Let training alone change parameters, and keep what it learns in them.",
            )

"""Whether the guarantee can be proved of a model and a loss, before they see a record.

The checks run on made-up records of the data's types and shapes, so that their outcome tells
nothing about the data and costs no privacy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from hanse.errors import CoupledLossError, TaskError, UnprovableModelError
from hanse.task import AnyTask, Examples, RecordValues
from torch import Tensor, nn

from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.hooks import HooksBackend
from hanse_client.steps import RecordLoss, trainable

_PROBED = 4
_TOLERANCE = 1e-3  # far above float32's rounding, far below one record's share of four

_BATCH_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_PRECISE = (torch.float32, torch.float64)


def check_provable(model: nn.Module) -> None:
    """Refuse layers by type, and precisions in which clipping does not hold.

    Batch statistics mix the records of a batch, and running ones leave with the model: frozen
    or without weights of their own too, whatever mode they are in.

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
    others; no buffer may change; and the gradients of the records must add up to that of the
    batch. The model is tried in evaluation mode, and in training mode with its dropout layers at
    rest; where it is random even so, training mode cannot be compared and is left out.

    Args:
        examples: whose types and shapes are taken, and nothing else.

    Raises:
        UnprovableModelError: if the model mixes records, or a gradient cannot be had by record.
        CoupledLossError: if the loss does.
        TaskError: if the loss of the made-up records is not finite.
    """
    probe = copy.deepcopy(model).cpu()
    batch = _made_up(examples)
    _check_removal(probe.eval(), loss, batch)
    _rest_dropout(probe.train())
    if _repeats_itself(probe, batch):
        _check_removal(probe, loss, batch)
    _check_buffers(probe, batch)
    _check_sums(probe, loss, batch)


def check_augmentation(task: AnyTask, examples: Examples) -> None:
    """Try on a few made-up records that augmenting one changes no other.

    With the same randomness, another record in one place must leave the rest as they are.

    Args:
        examples: whose types and shapes are taken, and nothing else.

    Raises:
        UnprovableModelError: if it mixes records.
    """
    batch = _made_up(examples)

    def augmented(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept = tuple(tensor.clone() for tensor in inputs)  # it may work in place
        return task.augment(kept, torch.Generator().manual_seed(0))

    expected = augmented(batch.inputs)
    for changed in range(_PROBED):
        others = torch.arange(_PROBED) != changed
        inputs = tuple(tensor.clone() for tensor in batch.inputs)
        for tensor in inputs:
            tensor[changed] = 1 - tensor[changed].float()
        for before, after in zip(expected, augmented(inputs), strict=True):
            if len(after) != _PROBED or not torch.equal(before[others], after[others]):
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
    probe, batch = copy.deepcopy(model).cpu().eval(), _made_up(examples)

    def of(records: Examples) -> list[Tensor]:
        with torch.no_grad():
            outputs = probe(*records.inputs)
            return [outputs, *(each(outputs, records.targets) for each in values)]

    values = tuple(values)
    whole = of(batch)
    for removed in range(_PROBED):
        rest = torch.tensor([i for i in range(_PROBED) if i != removed])
        for before, after in zip(whole, of(batch.take(rest)), strict=True):
            if len(before) != _PROBED or not _alike(before[rest], after):
                raise UnprovableModelError(
                    "a model's output or a metric of a record depends on the other records: it "
                    "cannot be released with noise",
                    remedy="Compute record i's output and value from record i alone.",
                )


def _made_up(examples: Examples) -> Examples:
    """Records of the same types and shapes: floats in (0, 1), integers 0 and 1."""
    generator = torch.Generator().manual_seed(0)

    def like(tensor: Tensor) -> Tensor:
        uniform = torch.rand((_PROBED, *tensor.shape[1:]), generator=generator)
        if tensor.is_floating_point():
            return (0.05 + 0.9 * uniform).to(tensor.dtype)
        return (uniform < 0.5).to(tensor.dtype)

    return Examples(tuple(like(tensor) for tensor in examples.inputs), like(examples.targets))


def _rest_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _DROPOUT):
            module.eval()


def _repeats_itself(model: nn.Module, batch: Examples) -> bool:
    with torch.no_grad():
        return torch.equal(model(*batch.inputs), model(*batch.inputs))


def _check_removal(model: nn.Module, loss: RecordLoss, batch: Examples) -> None:
    outputs, losses, gradients = _by_record(model, loss, batch)
    if not torch.isfinite(losses).all():
        raise TaskError(
            "the loss of made-up records (floats in (0, 1), integers 0 and 1) is not finite",
            remedy="The loss must be finite for every record of the declared types and shapes.",
        )
    for removed in range(_PROBED):
        rest = torch.tensor([i for i in range(_PROBED) if i != removed])
        try:
            others = _by_record(model, loss, batch.take(rest))
        except (RuntimeError, ValueError, IndexError) as error:
            raise CoupledLossError(
                f"the loss of {_PROBED} records can be had, and not that of {_PROBED - 1} of them"
            ) from error
        if len(outputs) == _PROBED and not _alike(outputs[rest], others[0]):
            raise UnprovableModelError(
                "the model's output for a record depends on the other records of its batch"
            )
        if not (_alike(losses[rest], others[1]) and _alike(gradients[rest], others[2])):
            raise CoupledLossError("leaving one record out of a batch changes the others' losses")


def _by_record(
    model: nn.Module, loss: RecordLoss, batch: Examples
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, ...), losses (B,), and the gradient of each loss, (B, P)."""
    parameters = trainable(model)
    outputs = model(*batch.inputs)
    losses = loss(outputs, batch.targets)
    gradients = [
        _flat(torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True))
        for one in losses
    ]
    return outputs.detach(), losses.detach(), torch.stack(gradients)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _alike(some: Tensor, others: Tensor) -> bool:
    """Whether each row is the other's, up to rounding."""
    if some.shape != others.shape:
        return False
    some, others = some.reshape(len(some), -1).double(), others.reshape(len(others), -1).double()
    difference, size = (some - others).norm(dim=1), some.norm(dim=1)
    return bool((difference <= _TOLERANCE * size + 1e-6).all())


def _check_buffers(model: nn.Module, batch: Examples) -> None:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        model(*batch.inputs)
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise UnprovableModelError(
                f"buffer {name!r} changes when the model sees records, and leaves with it",
                remedy="Keep what training learns in parameters.",
            )


def _check_sums(model: nn.Module, loss: RecordLoss, batch: Examples) -> None:
    """Hold the clipped sum, as training gets it, against that of a loop over the records."""
    with _seeded():
        _, _, gradients = _by_record(model, loss, batch)
    norms = gradients.norm(dim=1)
    clipping = Clipping(float(norms.median()) or 1.0)
    expected = clipping.factors(norms) @ gradients
    try:
        with _seeded(), closing(HooksBackend(model, loss, clipping)) as backend:
            found = backend.clipped_sum(batch)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UnprovableModelError(
            "Opacus cannot take the model's gradients record by record",
            remedy="Use layers that Opacus knows, and no operations in place.",
        ) from error
    learned = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    parts = torch.split(expected, list(learned.values()))
    for name, total, loop in zip(learned, found.sums, parts, strict=True):
        if not _alike(total.reshape(1, -1), loop[None]):
            raise UnprovableModelError(
                f"parameter {name!r} is used outside the layer that it belongs to, so that its "
                "gradients cannot be had record by record",
                remedy="Use each parameter through its own layer's forward.",
            )


@contextmanager
def _seeded() -> Iterator[None]:
    """The same dropout each time; torch's own randomness goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield

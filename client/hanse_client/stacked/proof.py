"""Whether sites can train together on a model: tried on a few made-up records."""

from __future__ import annotations

import torch
from hanse.errors import HanseError
from hanse.task import AnyTask, Examples
from torch import Tensor, nn

from hanse_client.plan import LocalPlan
from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.probe import alike, another, by_record, made_up, probe_of, seeded
from hanse_client.stacked.gradients import Batches, Gradients
from hanse_client.steps import record_loss

MOST_WEIGHTS = 100_000
"""Of a model: a larger one keeps a core busy by itself, and gains nothing by company."""


def why_not(task: AnyTask, model: nn.Module, examples: Examples, plan: LocalPlan) -> str | None:
    """Why sites with such examples cannot carry out such plans together; None if they can.

    Args:
        examples: whose types and shapes are taken, and nothing else.
    """
    if plan.augment:
        return "training.augment draws each site's changes from its own seed"
    if len(list(model.parameters())) != len(list(model.named_parameters(remove_duplicate=False))):
        return "the model uses one weight in several places"
    weights = sum(parameter.numel() for parameter in model.parameters())
    if weights > MOST_WEIGHTS:
        return f"the model's {weights:,} weights are more than {MOST_WEIGHTS:,}"
    try:
        return _tried(task, probe_of(model).train(), examples, plan)
    except HanseError as refusal:
        return refusal.message
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as failure:
        return f"torch.func cannot run the model: {str(failure).partition(chr(10))[0]}"


def _tried(task: AnyTask, model: nn.Module, examples: Examples, plan: LocalPlan) -> str | None:
    """Two sites with other weights and other records each, against autograd, record by record."""
    loss = record_loss(plan.loss, task)
    sites = made_up(examples), another(made_up(examples), 0)
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    kept = {name: tensor.clone() for name, tensor in model.named_buffers()}
    expected = []
    for factor, records in zip(_FACTORS, sites, strict=True):
        with torch.no_grad(), seeded():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(start[name] * factor)
        with seeded():
            expected.append(by_record(model, loss, records))
    if any(not torch.equal(tensor, kept[name]) for name, tensor in model.named_buffers()):
        return "the model changes what it keeps of its own when it sees records"
    gradients = torch.stack(expected)
    means = Gradients(model, loss, None)
    stacked = [torch.stack([start[name] * each for each in _FACTORS]) for name in means.names]
    together = _stacked(sites)
    if not alike(_flat(means(stacked, together).gradients), gradients.mean(dim=1)):
        return "together, the gradients are other ones"
    if plan.privacy is None:
        return None
    norms = gradients.norm(dim=2)
    clipping = Clipping(float(norms.median()) or 1.0)
    sums = Gradients(model, loss, clipping)(stacked, together).gradients
    if not alike(_flat(sums), (clipping.factors(norms)[:, None] @ gradients)[:, 0]):
        return "together, the clipped sums are other ones"
    return None


_FACTORS = (1.0, 0.5)
"""What the two sites' trainable weights are in parts of the model's."""


def _stacked(sites: tuple[Examples, ...]) -> Batches:
    counts = [len(each) for each in sites]
    return Batches(
        tuple(torch.stack(each) for each in zip(*(one.inputs for one in sites), strict=True)),
        torch.stack([one.targets for one in sites]),
        torch.ones(len(sites), counts[0], dtype=torch.bool),
        torch.tensor(counts, dtype=torch.float32),
        counts,
    )


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)

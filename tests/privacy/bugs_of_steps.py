"""Steps that clip, divide, count or pull otherwise than the accounting assumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hanse.task import Examples
from hanse_client import training
from hanse_client.plan import PrivateSteps
from hanse_client.privacy import clipping
from hanse_client.privacy.backends import BACKENDS
from hanse_client.privacy.clipping import Backend, ClippedSum, Clipping
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.settings import BackendName
from hanse_client.steps import Outcome, RecordLoss
from torch import Tensor, nn

from tests.privacy import test_clipping as clipped
from tests.privacy import test_every_backend as backends
from tests.privacy.planting import Bug, Ground
from tests.unit.client import test_dp_engine as engine
from tests.unit.client import test_training

Factors = Callable[[Clipping, Tensor], Tensor]
STEP = DpEngine.__call__
INIT = DpEngine.__init__


def factors_of(factors: Factors) -> Callable[[Ground], None]:
    """Plants other factors for gradients of norms (B,)."""
    return lambda ground: ground.patch.setattr(Clipping, "factors", factors)


def not_clipped(self: Clipping, norms: Tensor) -> Tensor:
    return torch.ones_like(norms)


def clipped_together(self: Clipping, norms: Tensor) -> Tensor:
    """As if the batch's mean gradient were clipped, not each record's."""
    return (self.bound / norms.mean()).clamp(max=1.0).expand_as(norms)


def normalised(self: Clipping, norms: Tensor) -> Tensor:
    """Gradients below the clipping norm are blown up to it."""
    return norms.reciprocal() * self.bound


class ByLayer:
    """A backend that clips each layer's gradient by itself, and not all of them together."""

    def __init__(self, backend: Backend, norm: float) -> None:
        self.name = backend.name
        self._backend = backend
        self._norm = norm

    def clipped_sum(self, part: Examples) -> ClippedSum:
        found = [self._backend.clipped_sum(part.take(torch.tensor([i]))) for i in range(len(part))]
        sums = [
            sum((self._clipped(gradient) for gradient in gradients), start=torch.zeros(()))
            for gradients in zip(*(each.sums for each in found), strict=True)
        ]
        return ClippedSum(
            sums=tuple(sums),
            losses=torch.cat([each.losses for each in found]),
            norms=torch.cat([each.norms for each in found]),
        )

    def close(self) -> None:
        self._backend.close()

    def _clipped(self, gradient: Tensor) -> Tensor:
        return gradient * min(1.0, self._norm / float(gradient.norm()))


def clipped_by_layer(ground: Ground) -> None:
    def init(self: DpEngine, *arguments: Any, **more: Any) -> None:
        INIT(self, *arguments, **more)
        privacy: PrivateSteps = arguments[3]
        self.backend = ByLayer(self.backend, privacy.clipping_norm)

    ground.patch.setattr(DpEngine, "__init__", init)
    ground.patch.setattr(Clipping, "factors", not_clipped)


def step_by(step: Callable[[DpEngine, Examples], Outcome]) -> Callable[[Ground], None]:
    """Plants another step of the engine."""
    return lambda ground: ground.patch.setattr(DpEngine, "__call__", step)


def over_the_true_size(self: DpEngine, batch: Examples) -> Outcome:
    self._batch_size = max(1, len(batch))
    return STEP(self, batch)


def skipping_empty_batches(self: DpEngine, batch: Examples) -> Outcome:
    if len(batch) == 0:
        return Outcome(records=0, losses=torch.zeros(0))
    return STEP(self, batch)


def without_noise_for_empty_batches(self: DpEngine, batch: Examples) -> Outcome:
    if len(batch) == 0:
        self._deviation = 0.0
    return STEP(self, batch)


class ProximalTerm:
    """FedProx as it is written down first: a term of the loss. It takes the pull's place."""

    def __init__(self, parameters: Sequence[nn.Parameter], mu: float) -> None:
        self._parameters = parameters
        self._start = [parameter.detach().clone() for parameter in parameters]
        self._mu = mu

    def __call__(self) -> None:
        """Nothing is left for after the noise."""

    def value(self) -> Tensor:
        pairs = zip(self._parameters, self._start, strict=True)
        squares = [(parameter - origin).square().sum() for parameter, origin in pairs]
        return self._mu / 2.0 * torch.stack(squares).sum()


def pulled_within_the_loss(ground: Ground) -> None:
    def init(self: DpEngine, model: Any, loss: RecordLoss, *rest: Any, **more: Any) -> None:
        term: ProximalTerm = more["pull"]

        def with_term(outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs, targets) + term.value()

        INIT(self, model, with_term, *rest, **more)

    ground.patch.setattr(DpEngine, "__init__", init)
    ground.patch.setattr(engine, "proximal_pull", ProximalTerm)


def empty_batches_left_out(ground: Ground) -> None:
    batches = training.batches_of

    def without_empty(*arguments: Any) -> Any:
        return (batch for batch in batches(*arguments) if len(batch) > 0)

    ground.patch.setattr(training, "batches_of", without_empty)


def loop(backend: BackendName) -> Callable[[Ground], None]:
    """Clipped sums against a loop over single records."""
    return lambda _: backends.test_the_sum_is_that_of_a_loop_over_single_records(backend, "mse")


def removal(backend: BackendName) -> Callable[[Ground], None]:
    """Leaving out one record."""
    return lambda _: (
        backends.test_leaving_out_one_record_moves_the_sum_by_the_clipping_norm_at_most(
            backend, "mse"
        )
    )


def every_step(ground: Ground) -> None:
    test_training.test_every_planned_step_is_taken_and_none_is_skipped_for_being_empty(ground.patch)


BUGS = [
    *(
        Bug(name=f"{what}, by {backend}", plant=plant, guard=guard(backend))
        for what, plant, guard in (
            ("nothing is clipped", factors_of(not_clipped), removal),
            ("the batch is clipped as one", factors_of(clipped_together), removal),
            ("each layer is clipped by itself", clipped_by_layer, removal),
            ("each layer is clipped by itself, in the sum", clipped_by_layer, loop),
            ("small gradients are scaled up", factors_of(normalised), loop),
        )
        for backend in BACKENDS
    ),
    Bug(
        name="the clip leaves no margin for rounding",
        plant=lambda ground: ground.patch.setattr(clipping, "MARGIN", 0.0),
        guard=lambda _: clipped.test_no_rounding_brings_a_clipped_gradient_above_the_norm(10),
    ),
    Bug(
        name="the divisor is the true size of the batch",
        plant=step_by(over_the_true_size),
        guard=lambda _: engine.test_the_divisor_is_the_nominal_batch_size_whatever_the_batch(),
    ),
    Bug(
        name="an empty batch takes no step",
        plant=step_by(skipping_empty_batches),
        guard=every_step,
    ),
    Bug(
        name="an empty batch takes no noise",
        plant=step_by(without_noise_for_empty_batches),
        guard=every_step,
    ),
    Bug(name="empty batches are left out", plant=empty_batches_left_out, guard=every_step),
    Bug(
        name="FedProx pulls within the loss",
        plant=pulled_within_the_loss,
        guard=lambda _: engine.test_fedprox_pulls_after_the_noise_by_its_closed_form(),
    ),
]

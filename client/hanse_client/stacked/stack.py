"""One round of training at many sites, their weights stacked."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from hanse.errors import DivergedError
from hanse.job import Optimizer
from hanse.task import Examples
from torch import Tensor, nn

from hanse_client.model import difference, is_finite
from hanse_client.noised import TrainingTally
from hanse_client.optimizers import LocalOptimizer
from hanse_client.plan import LocalPlan, PrivateSteps
from hanse_client.privacy.ahead import NoiseAhead
from hanse_client.privacy.noise import NoiseSource, draws, noised
from hanse_client.stacked.gradients import Batches, Found, Gradients
from hanse_client.training import TrainingResult, batches_of

if TYPE_CHECKING:
    from hanse_client.stacked.cohort import Waiting

Alike = tuple[int, PrivateSteps | None, Optimizer, float, str, float]

LENGTHS = 8
"""Batches of unequal lengths are padded to a multiple of this."""

BACKEND = "stacked"
"""What results and metrics call private training at many sites at once."""


def alike(plan: LocalPlan) -> Alike:
    """What must be the same in the plans of sites that train together; their steps need not."""
    return (
        plan.batch_size,
        plan.privacy,
        plan.optimizer,
        plan.lr,
        plan.loss,
        plan.proximal_mu,
    )


class Stack:
    """Sites with plans that are :func:`alike`, and the same weights to begin with.

    Args:
        model: holds these weights.
        gradients: of the model and the plans' loss.
        noise: of private steps.
        noise_of_metrics: of metrics that leave with noise.
    """

    def __init__(
        self,
        model: nn.Module,
        gradients: Gradients,
        device: torch.device,
        waiting: Sequence[Waiting],
        *,
        noise: NoiseSource,
        noise_of_metrics: NoiseSource,
    ) -> None:
        # Those with the most steps first: who has done all of its own leaves from the end.
        self._order = sorted(range(len(waiting)), key=lambda site: -waiting[site].plan.steps)
        self._sites = [waiting[site] for site in self._order]
        self._model, self._gradients, self._device = model, gradients, device
        self._plan = self._sites[0].plan
        self._noise, self._noise_of_metrics = NoiseAhead(noise, device), noise_of_metrics
        self._start = [model.get_parameter(name).detach() for name in gradients.names]
        self._weights = [each.expand(len(waiting), *each.shape).clone() for each in self._start]
        self._optimizer = LocalOptimizer(self._plan.optimizer, [], self._plan.lr)
        self._drawn = [0] * len(waiting)
        self._clipped = [0] * len(waiting)
        self._losses = torch.zeros(len(waiting), dtype=torch.float64, device=device)
        self._tallies = [
            None if each.plan.noised is None else TrainingTally(each.plan.noised)
            for each in self._sites
        ]

    def train(self) -> list[TrainingResult | DivergedError]:
        """What came of each site, in the order in which they were given."""
        started = time.monotonic()
        drawn = [_draws(each) for each in self._sites]
        records = _Records([each.examples for each in self._sites], self._device)
        weights = self._weights
        for step in range(self._plan.steps):
            active = sum(each.plan.steps > step for each in self._sites)
            if active < len(weights[0]):
                weights = [each[:active] for each in weights]
                self._optimizer.narrow(active)
            self._step(weights, records.batches([next(each) for each in drawn[:active]]))
        results = self._results(time.monotonic() - started)
        return [result for _, result in sorted(zip(self._order, results, strict=True), key=_first)]

    def _step(self, weights: Sequence[Tensor], batches: Batches | None) -> None:
        """One step of every site that has one left.

        Args:
            batches: None if no site drew a record.
        """
        privacy = self._plan.privacy
        if privacy is not None:
            self._noise.begin(draws(weights))
        if batches is None:
            gradients = [torch.zeros_like(each) for each in weights]
        else:
            found = self._gradients(weights, batches)
            gradients = found.gradients
            self._count(batches, found)
        if privacy is not None:
            deviation = privacy.noise_multiplier * privacy.clipping_norm
            noised(gradients, deviation, self._plan.batch_size, self._noise)
        if self._plan.proximal_mu:
            for gradient, local, origin in zip(gradients, weights, self._start, strict=True):
                gradient.add_(local - origin, alpha=self._plan.proximal_mu)
        self._optimizer.advance(weights, gradients)

    def _count(self, batches: Batches, found: Found) -> None:
        self._losses[: len(found.losses)] += found.losses.sum(dim=1)
        for site, count in enumerate(batches.counts):
            self._drawn[site] += count
            self._clipped[site] += found.clipped[site]
            tally = self._tallies[site]
            if tally is not None:
                tally.add(found.losses[site, :count], found.clipped[site])

    # --- what came of it ------------------------------------------------------------------------

    def _results(self, seconds: float) -> list[TrainingResult | DivergedError]:
        state = self._model.state_dict()
        came = self._sites[0].weights
        learned = dict(zip(self._gradients.names, self._weights, strict=True))
        updates: dict[str, Tensor] = {}
        squares = torch.zeros(len(self._sites), dtype=torch.float64)
        for name, weight in came.items():
            if name in learned:
                updates[name] = difference(learned[name], weight).cpu()
            else:
                unchanged = difference(state[name], weight).cpu()
                updates[name] = unchanged.expand(len(self._sites), *unchanged.shape)
            if updates[name].is_floating_point():
                flat = updates[name].reshape(len(self._sites), -1)
                squares += torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()
        norms, losses = squares.sqrt().tolist(), self._losses.tolist()
        return [
            self._result(site, updates, norms[site], losses[site], seconds)
            for site in range(len(self._sites))
        ]

    def _result(
        self, site: int, updates: Mapping[str, Tensor], norm: float, loss: float, seconds: float
    ) -> TrainingResult | DivergedError:
        update = {name: each[site] for name, each in updates.items()}
        if not math.isfinite(norm) and not all(map(is_finite, update.values())):
            return DivergedError("local training ended in weights that are not finite")
        plan, drawn, tally = self._sites[site].plan, self._drawn[site], self._tallies[site]
        return TrainingResult(
            update=update,
            train_loss=loss / drawn if drawn and math.isfinite(loss) else None,
            clipped_fraction=self._clipped[site] / drawn if drawn and plan.privacy else None,
            noised={} if tally is None else tally.release(self._noise_of_metrics),
            update_norm=norm,
            steps=plan.steps,
            backend=BACKEND if plan.privacy else None,
            seconds=seconds,
        )


def _first(pair: tuple[int, TrainingResult | DivergedError]) -> int:
    return pair[0]


def _draws(site: Waiting) -> Iterator[Tensor]:
    """The indices of a site's batches: those that it would draw alone."""
    randomness = torch.Generator()
    if site.plan.privacy is None:
        randomness.manual_seed(site.plan.seed)
    return batches_of(len(site.examples), site.plan, randomness)


def _shaped(rows: Tensor, shape: torch.Size) -> Tensor:
    """(S * B, ...) as (S, B, ...)."""
    return rows.view(*shape, *rows.shape[1:])


class _Records:
    """The records of all sites, one after the other."""

    def __init__(self, examples: Sequence[Examples], device: torch.device) -> None:
        inputs = zip(*(each.inputs for each in examples), strict=True)
        self._inputs = tuple(torch.cat(tensors).to(device) for tensors in inputs)
        self._targets = torch.cat([each.targets for each in examples]).to(device)
        self._device = device
        lengths = torch.tensor([0] + [len(each) for each in examples[:-1]])
        self._starts = lengths.cumsum(dim=0)[:, None]

    def batches(self, drawn: Sequence[Tensor]) -> Batches | None:
        """A batch of each of the first sites; None if all are empty."""
        counts = [len(each) for each in drawn]
        longest = max(counts)
        if longest == 0:
            return None
        if min(counts) == longest:
            own, real = torch.stack(list(drawn)), torch.ones(len(drawn), longest, dtype=torch.bool)
        else:
            # A few lengths come again and again: what is traced for one need not be made anew.
            longest = -(-longest // LENGTHS) * LENGTHS
            own = torch.zeros(len(drawn), longest, dtype=torch.int64)
            real = torch.arange(longest) < torch.tensor(counts)[:, None]
            own[real] = torch.cat(list(drawn))
        rows = (own + self._starts[: len(drawn)]).flatten().to(self._device)
        return Batches(
            tuple(_shaped(each.index_select(0, rows), own.shape) for each in self._inputs),
            _shaped(self._targets.index_select(0, rows), own.shape),
            real.to(self._device),
            torch.tensor(counts, dtype=torch.float32, device=self._device),
            counts,
        )

"""Local training and evaluation of a task's model at a site, with and without privacy."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord
from hanse.evaluation import predict, record_metrics
from hanse.task import AnyTask, Examples
from torch import Tensor

from hanse_client.device import widest_float
from hanse_client.model import WarmModel
from hanse_client.noised import TrainingTally
from hanse_client.optimizers import LocalOptimizer
from hanse_client.plan import LocalPlan, PrivateSteps
from hanse_client.privacy.checks import (
    check_augmentation,
    check_per_example,
    check_provable,
    check_values,
)
from hanse_client.privacy.choice import choose_backend
from hanse_client.privacy.engine import DpEngine
from hanse_client.privacy.noise import NoiseSource, SecureNoise, fresh_seed
from hanse_client.privacy.replays import CudaGraphs, Replays
from hanse_client.privacy.sampling import poisson_batches
from hanse_client.privacy.settings import BackendName, EngineSettings
from hanse_client.steps import (
    PlainStep,
    RecordLoss,
    Step,
    proximal_pull,
    record_loss,
)
from hanse_client.weights import checked_weights

log = logging.getLogger("hanse.client")


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a round of local training gives.

    ``update`` and ``noised`` are private, in the sense of the plan's charge; of the rest,
    ``update_norm`` is a function of the update, and the exact figures are outside epsilon.

    Attributes:
        update: local minus global, by name of the model's state, each in the dtype of the
            weights that came; exclusive or of booleans.
        train_loss: mean over the records drawn, each before the step that it was drawn for;
            None if none was drawn or it is not finite.
        clipped_fraction: share of the records drawn whose gradient was clipped; None if none
            was drawn, or without privacy.
        noised: the metrics of the plan that leave with noise, by name.
        update_norm: L2 norm of the update's floats.
        backend: of the engine; None without privacy.
        seconds: wall time.
    """

    update: dict[str, Tensor]
    train_loss: float | None
    clipped_fraction: float | None
    noised: dict[str, float]
    update_norm: float
    steps: int
    backend: str | None
    seconds: float


class Trainer:
    """A task's model at a site, kept warm from round to round; for one thread at a time.

    Args:
        device: where it trains.
        engine: of private rounds.
        noise: of the metrics that leave with it; fresh :class:`SecureNoise` if None.
    """

    def __init__(
        self,
        task: AnyTask,
        device: torch.device,
        *,
        engine: EngineSettings | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        self.task = task
        self._engine = EngineSettings() if engine is None else engine
        self.noise: NoiseSource = SecureNoise() if noise is None else noise
        self._device = device
        self.model = WarmModel(task, device)
        self._randomness = torch.Generator()
        self._received: tuple[Callable[[], ArrayRecord | None], Mapping[str, Tensor]]
        self._received = _nothing, {}
        self._proved: dict[Subject, BackendName] = {}
        self._physical: dict[Subject, int | None] = {}
        self.saw_records = True
        """Whether a record may have been looked at since the ledger's gate set this to False: as
        long as it is False, a charge can be taken back."""
        self._metrics_proved: set[tuple[Shape, ...]] = set()
        self._step_noise: NoiseSource | None = None
        self._replays: tuple[tuple[Subject, float], Replays] | None = None

    def receive(self, arrays: ArrayRecord) -> Mapping[str, Tensor]:
        """The weights that came, to be read only; those that came last are not read again.

        Many simulated sites are sent one and the same record.

        Raises:
            TaskError: if they are not of the task's model, or not finite.
        """
        came, weights = self._received
        if came() is not arrays:
            weights = checked_weights(arrays, self.model.state)
            self._received = weakref.ref(arrays, self._forget), weights
        return weights

    def _forget(self, gone: weakref.ref[ArrayRecord]) -> None:
        """Hold no model longer than who sent it does."""
        if self._received[0] is gone:
            self._received = _nothing, {}

    def check(self, examples: Examples, plan: LocalPlan) -> None:
        """Refuse what cannot be trained under privacy; at once if that was found before.

        It looks at the types and shapes of ``examples`` only, so that it may come before the
        charge, and a model that cannot be trained costs none.

        Raises:
            UnprovableModelError: if the model or the augmentation mixes records, or no backend
                can train the model.
            CoupledLossError: if the loss does.
        """
        if plan.privacy is None:
            return
        subject = subject_of(plan, examples)
        if subject in self._proved:
            return
        loss = record_loss(plan.loss, self.task)
        check_provable(self.model.module)
        check_per_example(self.model.module, loss, examples)
        if plan.augment:
            check_augmentation(self.task, examples)
        choice = choose_backend(self.model.module, loss, examples, self._engine.backend)
        log.info("private steps by the backend %s: %s", choice.backend, choice.reason)
        self._proved[subject] = choice.backend

    def check_metrics(self, examples: Examples) -> None:
        """Refuse to noise metrics of a model whose outputs mix records; at once after the first.

        It looks at the types and shapes of ``examples`` only, like :meth:`check`.

        Raises:
            UnprovableModelError: if the model in evaluation mode does, or a metric.
        """
        shapes = _shapes(examples)
        if shapes in self._metrics_proved:
            return
        bounded = record_metrics(self.task, loss_bound=1.0)
        check_values(self.model.module, [metric.values for metric in bounded.values()], examples)
        self._metrics_proved.add(shapes)

    def train(
        self, weights: Mapping[str, Tensor], examples: Examples, plan: LocalPlan
    ) -> TrainingResult:
        """Carry out ``plan`` on ``examples``, from ``weights``.

        Without privacy the result is a function of the arguments alone. With it, batches, noise,
        dropout and augmentation take their randomness from the operating system.

        Raises:
            TaskError: if the weights do not fit the model.
            UnprovableModelError: if the model cannot be trained under privacy.
            CoupledLossError: if the loss cannot.
            DivergedError: if the update is not finite.
        """
        started = time.monotonic()
        self.check(examples, plan)
        self.model.load(weights)
        # A seed that others know would make each record's augmentation a known function of
        # which records come before it in the batch: then one record moves all the others.
        seed = plan.seed if plan.privacy is None else fresh_seed()
        randomness = self._randomness.manual_seed(seed)
        drawn, clipped = 0, torch.tensor(0) if plan.privacy else 0
        loss = torch.zeros((), dtype=widest_float(self._device), device=self._device)
        tally = None if plan.noised is None else TrainingTally(plan.noised)
        with _torch_seeded(seed, self._device), self._step(plan, examples) as step:
            self.saw_records = True  # before the first batch is drawn, and after all that is not
            for indices in batches_of(len(examples), plan, randomness):
                outcome = step(self._batch(examples, indices, plan, randomness))
                drawn += outcome.records
                # Numbers stay on the device: to ask for one is to wait for it.
                loss += outcome.losses.sum(dtype=loss.dtype)
                clipped = clipped + outcome.clipped
                if tally is not None:
                    tally.add(outcome.losses, int(outcome.clipped))
            if isinstance(step, DpEngine):
                self._physical[subject_of(plan, examples)] = step.physical_batch
        total = float(loss)
        update, norm = self.model.update(weights, private=plan.privacy is not None)
        return TrainingResult(
            update=update,
            train_loss=total / drawn if drawn and math.isfinite(total) else None,
            clipped_fraction=int(clipped) / drawn if drawn and plan.privacy else None,
            noised={} if tally is None else tally.release(self.noise),
            update_norm=norm,
            steps=plan.steps,
            backend=step.backend.name if isinstance(step, DpEngine) else None,
            seconds=time.monotonic() - started,
        )

    def predict(self, weights: Mapping[str, Tensor], examples: Examples) -> Tensor:
        """The outputs of the model with ``weights`` for all N records, shape (N, ...), on the CPU.

        Raises:
            TaskError: if the weights do not fit the model.
            DataError: if there are no examples.
        """
        self.model.load(weights)
        self.saw_records = True
        return predict(self.model.module, examples, self._device)

    @contextmanager
    def _step(self, plan: LocalPlan, examples: Examples) -> Iterator[Step]:
        if not self.model.module.training:
            self.model.module.train()
        parameters = self.model.trainable
        loss: RecordLoss = record_loss(plan.loss, self.task)
        optimizer = LocalOptimizer(plan.optimizer, parameters, plan.lr)
        pull = proximal_pull(parameters, plan.proximal_mu)
        if plan.privacy is None:
            yield PlainStep(self.model.module, loss, optimizer, pull, self._engine.precision)
            optimizer.zero_grad()
            return
        subject = subject_of(plan, examples)
        with DpEngine(
            self.model.module,
            loss,
            optimizer,
            plan.privacy,
            batch_size=plan.batch_size,
            pull=pull,
            backend=self._proved.get(subject, self._engine.backend),
            physical_batch=self._engine.physical_batch or self._physical.get(subject),
            precision=self._engine.precision,
            noise=self._noise_of_steps(),
            replays=self._replays_of(subject, plan.privacy),
        ) as engine:
            yield engine

    def _replays_of(self, subject: Subject, privacy: PrivateSteps) -> Replays | None:
        """Graphs of such steps, kept as long as no others are asked for."""
        if self._device.type != "cuda" or not (self._engine.graphs and self.model.copies):
            return None
        if self._proved.get(subject) != "bookkeeping":
            return None
        key = subject, privacy.clipping_norm
        if self._replays is None or self._replays[0] != key:
            module, device = self.model.module, self._device
            tensors = [*module.parameters(), *module.buffers()]
            self._replays = key, Replays(tensors, lambda: CudaGraphs(device))
        return self._replays[1]

    def _noise_of_steps(self) -> NoiseSource:
        if self._step_noise is None:
            self._step_noise = SecureNoise()
        return self._step_noise

    def _batch(
        self, examples: Examples, indices: Tensor, plan: LocalPlan, randomness: torch.Generator
    ) -> Examples:
        batch = examples.take(indices)
        if plan.augment and len(batch) > 0:
            batch = Examples(self.task.augment(batch.inputs, randomness), batch.targets)
        return batch.to(self._device)


Shape = tuple[tuple[int, ...], torch.dtype]

Subject = tuple[str, bool, tuple[Shape, ...]]
"""What a proof is of: the loss, whether records are augmented, and their shapes and types."""


def subject_of(plan: LocalPlan, examples: Examples) -> Subject:
    """What a proof about such a plan for such examples is of."""
    return plan.loss, plan.augment, _shapes(examples)


def _shapes(examples: Examples) -> tuple[Shape, ...]:
    tensors = *examples.inputs, examples.targets
    return tuple((tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors)


def _nothing() -> None:
    """No record came yet, or it is gone."""


def batches_of(records: int, plan: LocalPlan, randomness: torch.Generator) -> Iterator[Tensor]:
    """The indices of each step's batch."""
    if plan.privacy is not None:
        yield from poisson_batches(records, plan.privacy.sampling_rate, plan.steps)
        return
    left = plan.steps
    while left > 0:
        epoch = torch.split(torch.randperm(records, generator=randomness), plan.batch_size)
        yield from epoch[:left]
        left -= len(epoch)


@contextmanager
def _torch_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout's randomness for a round; torch's own goes on afterwards as if nothing had been."""
    if device.type != "cpu":
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
        return
    # Not torch.manual_seed: it notes, with a traceback, a seed for each kind of accelerator.
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)

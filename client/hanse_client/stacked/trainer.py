"""The trainer of simulated sites that train together where they can."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from hanse.task import AnyTask, Examples
from torch import Tensor

from hanse_client.plan import LocalPlan
from hanse_client.privacy.clipping import Clipping
from hanse_client.privacy.settings import EngineSettings
from hanse_client.stacked.cohort import Cohort, Waiting
from hanse_client.stacked.gradients import Gradients
from hanse_client.stacked.proof import why_not
from hanse_client.stacked.stack import Alike, Stack, alike
from hanse_client.steps import record_loss
from hanse_client.training import Subject, Trainer, TrainingResult, subject_of

log = logging.getLogger("hanse.simulation")


class StackedTrainer(Trainer):
    """Trains a site together with others of its cohort, where that gives what it would alone.

    What cannot be stacked is trained alone, and the log says why, once. Up to the rounding of
    float32, and to the randomness of private training, the updates are the same either way.
    """

    def __init__(
        self,
        task: AnyTask,
        device: torch.device,
        *,
        engine: EngineSettings | None = None,
        cohort: Cohort,
    ) -> None:
        super().__init__(task, device, engine=engine)
        self._cohort = cohort
        self._gradients: dict[tuple[str, float | None], Gradients] = {}
        self._stackable: dict[tuple[Subject, bool], bool] = {}

    def train(
        self, weights: Mapping[str, Tensor], examples: Examples, plan: LocalPlan
    ) -> TrainingResult:
        """Carry out ``plan`` on ``examples``, from ``weights``, as :meth:`Trainer.train` does."""
        self.check(examples, plan)
        if not self._stacks(examples, plan):
            return super().train(weights, examples, plan)
        return self._cohort.join(Waiting(weights, examples, plan), self._train_all)

    def _stacks(self, examples: Examples, plan: LocalPlan) -> bool:
        subject = subject_of(plan, examples), plan.privacy is not None
        if subject not in self._stackable:
            reason = self._why_alone(examples, plan)
            self._stackable[subject] = reason is None
            if reason is None:
                log.info("sites are trained together")
            else:
                log.warning("sites are trained one after the other: %s", reason)
        return self._stackable[subject]

    def _why_alone(self, examples: Examples, plan: LocalPlan) -> str | None:
        lowered = self._engine.precision != "float32"
        asked = self._engine.model_copy(update={"graphs": True})  # there are none of stacked sites
        if lowered or (plan.privacy is not None and asked != EngineSettings()):
            return "site.toml says how steps are made"
        return why_not(self.task, self.model.module, examples, plan)

    def _train_all(self, waiting: Sequence[Waiting]) -> None:
        groups: dict[tuple[int, Alike], list[Waiting]] = {}
        for each in waiting:
            groups.setdefault((id(each.weights), alike(each.plan)), []).append(each)
        self.saw_records = True  # of whoever waits: the ledger's gates are around all of them
        for group in groups.values():
            self.model.load(group[0].weights)
            stack = Stack(
                self.model.module,
                self._gradients_of(group[0].plan),
                self._device,
                group,
                noise=self._noise_of_steps(),
                noise_of_metrics=self.noise,
            )
            for each, outcome in zip(group, stack.train(), strict=True):
                each.outcome = outcome

    def _gradients_of(self, plan: LocalPlan) -> Gradients:
        norm = None if plan.privacy is None else plan.privacy.clipping_norm
        if (plan.loss, norm) not in self._gradients:
            clipping = None if norm is None else Clipping(norm)
            made = Gradients(self.model.module, record_loss(plan.loss, self.task), clipping)
            self._gradients[plan.loss, norm] = made
        return self._gradients[plan.loss, norm]

"""The run of an audit: the site's own training, on canaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from hanse.job import Optimizer
from torch import Tensor

from hanse_client.canaries.design import Design
from hanse_client.canaries.scores import Scores
from hanse_client.canaries.task import (
    STEEPNESS,
    Canaries,
    CanaryOptions,
    records_along,
    way_along,
)
from hanse_client.plan import LocalPlan
from hanse_client.privacy.settings import BackendName, EngineSettings
from hanse_client.training import Trainer


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the training of an audit gave.

    Attributes:
        backend: of the engine that it was trained by.
    """

    scores: Scores
    backend: str


def run(
    plans: Sequence[LocalPlan],
    clipping_norm: float,
    design: Design,
    *,
    backend: BackendName,
    device: torch.device,
) -> Run:
    """Train on the design's records round by round, by the trainer that sites have.

    Of each plan the steps, the batch size and the mechanism are kept. The optimiser is plain
    descent in place of the job's, so that the update is the sum of the steps' noised gradients:
    what an optimiser makes of them is no more private and no less.
    """
    options = CanaryOptions(directions=design.directions, norm=STEEPNESS * clipping_norm)
    task = Canaries(options)
    trainer = Trainer(task, device, engine=EngineSettings(backend=backend))
    start = {name: torch.zeros_like(weight) for name, weight in task.model().state_dict().items()}
    included = design.toss()
    records = records_along(_directions(design, included[0]))
    way, backends = np.zeros(design.directions), set()
    for plan in plans:
        result = trainer.train(start, records, _plainly(plan))
        way += way_along(result.update).numpy() * plan.batch_size / clipping_norm
        backends.add(result.backend or "none")
    return Run(
        scores=Scores(
            included=included,
            canaries=way[None, : design.canaries],
            groups=way[None, design.canaries :],
        ),
        backend=" and ".join(sorted(backends)),
    )


def _directions(design: Design, included: np.ndarray) -> Tensor:
    canaries = np.flatnonzero(included)
    fillers = np.repeat(np.arange(design.canaries, design.directions), design.group)
    return torch.from_numpy(np.concatenate([canaries, fillers]))


def _plainly(plan: LocalPlan) -> LocalPlan:
    return replace(
        plan, optimizer=Optimizer(name="sgd"), lr=1.0, loss="task", augment=False, proximal_mu=0.0
    )

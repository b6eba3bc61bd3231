"""``job.toml``: what a data scientist asks of a federation, as frozen models.

The same job runs in a simulation and on real sites. Settings that touch privacy are a type of
their own (:class:`Privacy`), apart from those that only touch learning or speed.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from hanse.aggregation import (
    SUMMING,
    Checks,
    Encoding,
    Fraction,
    SecureAggregation,
    StrategyChoice,
)
from hanse.config import Settings, load_toml
from hanse.errors import JobError

Count = Annotated[int, Field(ge=1, le=10**9)]
"""Of rounds, steps, records: sites reckon with them, so they are what a machine can count."""


class TaskChoice(Settings):
    """``[task]``: which task, with its own options."""

    name: str = Field(description="a task that ships with Hanse, or `package.module:Class`")
    options: dict[str, Any] = Field(default_factory=dict)


class Optimizer(Settings):
    """``[training.optimizer]``: the local optimiser."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Optimizer:
        if self.momentum and self.name in ("adam", "adamw"):
            raise ValueError(f"{self.name} takes no momentum")
        return self


class Schedule(Settings):
    """``[training.schedule]``: the local learning rate over the rounds of the run.

    ``step`` multiplies by ``gamma`` every ``every`` rounds; ``cosine`` and ``linear`` go from
    the optimiser's ``lr`` down to ``final`` times it at the last round; ``warmup`` rounds rise
    linearly to it first.
    """

    name: Literal["constant", "step", "cosine", "linear"] = "constant"
    gamma: Fraction = 0.1
    every: Count = 1
    final: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 0


class Training(Settings):
    """``[training]``: what each site does in a round. Give ``steps`` or ``epochs``, not both."""

    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count = 32
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Literal["task", "cross_entropy", "mse"] = "task"
    augment: bool = False
    proximal_mu: NonNegativeFloat = Field(
        default=0.0, description="FedProx (Li et al. 2020): pull towards the global model"
    )

    def private_steps(self, sampling_rate: float) -> int:
        """Steps of a private round: an epoch draws each record once in expectation."""
        # Rounded first: 1 / q of a rate such as 0.1 may lie a bit above the whole number.
        return self.steps or (self.epochs or 1) * math.ceil(round(1.0 / sampling_rate, 9))

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and not both")
        return self


class Privacy(Settings):
    """``[privacy]``: the mechanism that every site applies to its own records.

    The unit is one record at one site (add-or-remove adjacency). Each step draws every record
    with probability q on its own (Poisson sampling), clips each record's gradient to
    ``clipping_norm`` in L2, adds Gaussian noise of standard deviation ``noise_multiplier *
    clipping_norm`` to the sum, and divides by the public ``training.batch_size``.

    ``sampling_rate`` fixes q; without it a site of N records uses q = min(1, batch_size / N),
    which only sites that make N public will do.
    Give ``noise_multiplier``, or a ``target_epsilon`` that a site's noise is calibrated to once,
    for all steps of the run and for the metrics that it releases with noise beside them.
    ``mechanism = "none"`` says in as many words: no privacy.
    """

    mechanism: Literal["dp-sgd", "none"] = "dp-sgd"
    noise_multiplier: Annotated[float, Field(ge=1e-6, le=1e9)] | None = None
    target_epsilon: Annotated[float, Field(ge=1e-6, le=1e9)] | None = None
    delta: Annotated[float, Field(ge=1e-30, lt=1.0)] = 1e-5
    clipping_norm: Annotated[float, Field(ge=1e-30, le=1e30)] = 1.0
    sampling_rate: Annotated[float, Field(ge=1e-9, le=1.0)] | None = None

    @model_validator(mode="after")
    def _one_noise(self) -> Privacy:
        given = (self.noise_multiplier is not None) + (self.target_epsilon is not None)
        if self.mechanism == "none" and given:
            raise ValueError('mechanism = "none" takes no noise_multiplier and no target_epsilon')
        if self.mechanism != "none" and given != 1:
            raise ValueError("give either noise_multiplier or target_epsilon, and not both")
        return self

    @property
    def private(self) -> bool:
        """Whether this job trains under differential privacy."""
        return self.mechanism != "none"


class Evaluation(Settings):
    """``[evaluation]``: how the global model is judged.

    ``federated`` asks the sites for those metrics on their held-out records that their policies
    release; ``central`` names data at the server. ``select`` decides which model is kept as the
    best: a metric's name, ``-`` in front where less is better.
    """

    every: Count = 1
    federated: bool = True
    central: Path | None = None
    select: str = "-loss"

    def rounds_judged_by_sites(self, rounds: int) -> int:
        """After how many rounds of a run the sites judge: every so many, and the last."""
        return math.ceil(rounds / self.every) if self.federated else 0


class Limits(Settings):
    """``[limits]``: what the server takes from a site at most."""

    reply_mb: PositiveFloat = 4096.0
    connections_wait: PositiveFloat = Field(
        default=600.0, description="seconds to wait for the quorum to connect before it is told"
    )


class Simulation(Settings):
    """``[simulation]``: defaults of ``hanse simulate``; of no effect on real sites."""

    data: Path | None = None
    sites: PositiveInt = 10
    partition: str = "iid"
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class Job(Settings):
    """A whole ``job.toml``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    rounds: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    task: TaskChoice
    training: Training
    privacy: Privacy
    strategy: StrategyChoice = StrategyChoice()
    secure_aggregation: SecureAggregation = SecureAggregation()
    checks: Checks = Checks()
    encoding: Encoding = Encoding()
    evaluation: Evaluation = Evaluation()
    initial_weights: Path | None = None
    limits: Limits = Limits()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _sums_only_what_it_may(self) -> Job:
        if not self.secure_aggregation.enabled:
            return self
        if self.strategy.name not in SUMMING:
            raise ValueError(
                f"strategy.name = {self.strategy.name!r} needs single updates, which "
                f"secure_aggregation hides from the server: choose one of {', '.join(SUMMING)}"
            )
        if self.strategy.folds_late:
            raise ValueError(
                'strategy.late = "fold" weighs single updates by their age, and '
                "secure_aggregation hides them from the server"
            )
        if self.checks.max_update_norm is not None:
            raise ValueError(
                "checks.max_update_norm needs single updates, which secure_aggregation hides "
                "from the server: it bounds each coordinate by secure_aggregation.range"
            )
        if not self.encoding.plain:
            raise ValueError(
                "encoding changes single updates, and secure_aggregation sums masked ones, which "
                "must all be whole: leave [encoding] out"
            )
        return self

    @cached_property
    def instruction(self) -> str:
        """What a site is told of this job, as JSON: all that shapes its work, and no more."""
        return self.model_dump_json(include=FOR_SITES)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of :attr:`instruction`, as 64 hex digits: the same work under any file name."""
        return hashlib.sha256(self.instruction.encode()).hexdigest()


FOR_SITES: dict[str, bool | set[str]] = {
    **dict.fromkeys(("name", "rounds", "seed", "task", "training", "privacy"), True),
    "secure_aggregation": {"enabled", "threshold", "range"},
    "evaluation": {"every", "federated"},  # how often: their evaluations share the target epsilon
}
"""What of a job a site is told, by table and key."""


def load_job(path: Path) -> Job:
    """Read a job; paths inside it are taken from the folder of ``path``.

    Raises:
        JobError: if the file is missing, malformed or invalid.
    """
    job = load_toml(path, Job, JobError)
    folder = path.resolve().parent

    def absolute(inner: Path | None) -> Path | None:
        return None if inner is None else folder / inner

    return job.model_copy(
        update={
            "initial_weights": absolute(job.initial_weights),
            "evaluation": job.evaluation.model_copy(
                update={"central": absolute(job.evaluation.central)}
            ),
            "simulation": job.simulation.model_copy(update={"data": absolute(job.simulation.data)}),
        }
    )

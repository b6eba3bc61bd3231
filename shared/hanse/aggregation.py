"""What a job asks of updates: how many a round takes, what they must be, how they are summed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from hanse.config import Settings

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
OptionValue = bool | int | float | str | list[Any] | dict[str, Any]

STREAMING = ("StreamingFedAvg", "FedBuff")
"""The strategies that fold updates one by one."""

SUMMING = (
    "StreamingFedAvg",
    "FedAvg",
    "FedAvgM",
    "FedAdam",
    "FedYogi",
    "FedAdagrad",
    "FedProx",
)
"""The strategies that need no more of the updates than their weighted sum."""


class StrategyChoice(Settings):
    """``[strategy]``: how the server aggregates, and how many sites a round takes.

    ``quorum`` is the least number of sites whose results make a round; ``available`` how many
    must be connected before a round starts (the quorum, if left out); ``deadline`` is the
    longest that a round waits for replies, in seconds.

    ``goal`` closes a round as soon as so many results are in, though more sites were asked
    (over-selection, Bonawitz et al. 2019, arXiv 1902.01046). What comes after a round's close is
    late. ``late = "drop"`` leaves it out, although its site has trained, and has spent privacy;
    ``late = "fold"`` folds it into the round during which it comes, discounted by ``(1 +
    staleness) ** -staleness_exponent`` for the rounds that ended meanwhile, and asks its site
    for nothing else until then. A site that is more than ``max_staleness`` rounds behind is given
    up.

    ``name = "FedBuff"`` is the asynchronous mode (Nguyen et al. 2022, arXiv 2106.06639): the
    server steps whenever ``goal`` updates are in, whatever their round.
    """

    name: str = "StreamingFedAvg"
    options: dict[str, OptionValue] = Field(default_factory=dict)
    fraction: Fraction = 1.0
    quorum: PositiveInt = 1
    available: PositiveInt | None = None
    goal: PositiveInt | None = None
    deadline: PositiveFloat = 3600.0
    late: Literal["drop", "fold"] = "drop"
    staleness_exponent: NonNegativeFloat = 0.5
    max_staleness: PositiveInt = 20
    patience: PositiveInt = Field(
        default=3, description="rounds in a row that may miss the quorum before the run stops"
    )

    @property
    def needs_connected(self) -> int:
        """How many sites must be connected before a round starts."""
        return max(self.quorum, self.available or self.quorum)

    @property
    def folds_late(self) -> bool:
        """Whether updates of earlier rounds count."""
        return self.late == "fold" or self.name == "FedBuff"

    @model_validator(mode="after")
    def _goal_is_reachable(self) -> StrategyChoice:
        if self.goal is not None and self.goal < self.quorum:
            raise ValueError(
                f"goal = {self.goal} would close every round below its quorum, {self.quorum}"
            )
        if self.name == "FedBuff" and self.goal is None:
            raise ValueError("FedBuff needs goal, the number of updates that a step takes")
        if self.late == "fold" and self.name not in STREAMING:
            raise ValueError(
                f'late = "fold" needs a strategy that folds updates one by one '
                f"({' or '.join(STREAMING)}), and {self.name} does not"
            )
        return self


PLAIN = "plain"
"""The name of no encoding: an update's floats as the model has them."""


class Encoding(Settings):
    """``[encoding]``: how an update travels from a site to the server.

    Encoded after the noise: privacy is what it was. Sites that do not know the encoding send plain
    updates, and the server takes both. The model travels to the sites as it is.

    ``float16`` and ``bfloat16`` take half of float32's bytes, ``int8`` a quarter and ``int4`` an
    eighth: with a scale for each 256 numbers, and rounded so that the expectation is the update.
    ``topk`` sends the largest numbers of each array as int8, with a bit for each place, or two
    bytes for each number where they are few; the site adds what it left out to its next update
    of the run.

    Attributes:
        kept: share of each array's numbers that ``topk`` sends.
        trainable_only: parameters that the task has frozen (``requires_grad`` False) do not
            travel: where adapters are trained, they alone do.
    """

    name: Literal["plain", "float16", "bfloat16", "int8", "int4", "topk"] = "plain"
    kept: Annotated[float, Field(ge=1e-4, le=0.5)] = 0.3
    trainable_only: bool = False

    @property
    def plain(self) -> bool:
        """Whether an update travels whole and as it is."""
        return self.name == PLAIN and not self.trainable_only


class SecureAggregation(Settings):
    """``[secure_aggregation]``: the server learns the sum of the updates, and no single one.

    It is a second wall beside ``[privacy]`` and no part of it: no noise is saved. Range and
    number of sites decide the step of the fixed-point numbers that are summed: at most
    ``range * sites / 2**29``. A round takes at most 1,000 sites (``strategy.fraction``), of which
    every two mask with each other.

    Attributes:
        threshold: fraction of a round's sites that must stay to its end; fewer are a round
            missed. With it the server would need at least ``2 * threshold - 1`` of them on its
            side to learn more than one sum.
        range: largest absolute value of a coordinate of an update, times its weight over the
            largest weight of the round.
        stage_deadline: the longest that a stage without training waits for a site, in seconds.
    """

    enabled: bool = False
    threshold: Annotated[float, Field(gt=0.5, le=1.0)] = 2 / 3
    range: Annotated[float, Field(gt=0.0, le=1e6)] = 8.0
    stage_deadline: PositiveFloat = 120.0


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the smallest value, {bounds[0]:g}, is above the largest, {bounds[1]:g}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


class Checks(Settings):
    """``[checks]``: what a reply must be to count, beside fitting the model and being finite.

    A reply that is not is left out of its round, told in the history, in `hanse server status`
    and on the metrics, whatever the strategy.

    Attributes:
        max_update_norm: largest L2 norm of an update; None for any.
        beyond: what becomes of a larger one: ``clip`` scales it down to that norm (Sun et al.
            2019, arXiv 1911.07963), ``refuse`` leaves the reply out.
        max_weight: largest weight that a site may claim; None for any.
        metrics: the smallest and the largest value that a metric may have, by its name.
    """

    max_update_norm: PositiveFloat | None = None
    beyond: Literal["clip", "refuse"] = "clip"
    max_weight: PositiveFloat | None = None
    metrics: dict[str, Range] = Field(default_factory=dict)

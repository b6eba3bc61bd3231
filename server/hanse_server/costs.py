"""What a run cost the records of a site, and what is not known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLOSED_FORM = "closed form of the Gaussian mechanism (Balle, Wang 2018)"
TIGHT = "privacy loss distributions (Doroshenko et al. 2022)"
FAST = "Rényi differential privacy, an upper bound (Mironov et al. 2019)"
TARGET = "none: the target epsilon of the job, which each site calibrates its noise to"

Kind = Literal["noised", "exact", "not known"]
Source = Literal["training", "held-out"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An epsilon, its delta, and how it was found."""

    epsilon: float
    delta: float
    accountant: str


@dataclass(frozen=True, kw_only=True)
class DataSetCost:
    """What a site's own ledger said of its data set, over all rounds, runs and jobs.

    Attributes:
        left: of the site's budget, None if it did not say.
        delta: likewise.
        stated_in: the round in which it last said so.
        complete: whether nothing was asked of the site since that it may have been charged for.
    """

    epsilon: float
    left: float | None
    delta: float | None
    stated_in: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """A metric that a site let out beside its updates.

    Attributes:
        noise_multiplier: of the noise that it left with, None where that is not so or not known.
    """

    name: str
    records: Source
    kind: Kind
    noise_multiplier: float | None = None


@dataclass(frozen=True, kw_only=True)
class SiteCost:
    """What is known of one site.

    Attributes:
        asked: rounds in which it was asked to train.
        counted: those of them that it may have trained in, whether or not its update was taken.
        evaluations: likewise, of the evaluations that it was asked for; none where it answered
            and put no noise on any.
        noise_multiplier: of all that a step gave away; None if it is not known.
        sampling_rate: likewise.
        steps: of a round, likewise.
        evaluation_noise: noise multiplier of each evaluation; None if none was noised.
        run: what this run cost, None if that is not known or there is no bound.
        data_set: what the site's ledger says of its data set; None if it does not say.
        disclosures: what else it let out.
        count: what its weight is: ``public``, ``declared`` or empty (:class:`Terms`).
    """

    asked: int
    counted: int
    evaluations: int
    noise_multiplier: float | None
    sampling_rate: float | None
    steps: int | None
    evaluation_noise: float | None
    run: Cost | None
    data_set: DataSetCost | None
    disclosures: tuple[Disclosure, ...]
    count: str

    @property
    def took_part(self) -> bool:
        """Whether any of its records may have been looked at."""
        return bool(self.counted or self.evaluations or self.disclosures)

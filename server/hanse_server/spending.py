"""What a run cost the records of each site, as far as its server can know.

Two figures are kept apart: what *this run* cost, which follows from the job, from what sites told
of their settings, and from what was asked of them; and what everything ever done with a site's
data cost, which only the site's own ledger knows, and which a site may release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hanse.flower import ENCODING_ERROR
from hanse.job import Job
from hanse.privacy.accounting import Charge, Charges, epsilon, epsilon_bound, merge

from hanse_server.costs import (
    CLOSED_FORM,
    FAST,
    TARGET,
    TIGHT,
    Cost,
    DataSetCost,
    Disclosure,
    Kind,
    SiteCost,
    Source,
)
from hanse_server.history import WORKING, RoundRecord, SiteRound

FIGURES = ("epsilon", "epsilon_left", "delta", "noise_multiplier", "sampling_rate", "steps")
"""What sites may tell of their privacy; functions of no record."""

OF_UPDATES = ("update_norm", ENCODING_ERROR)
"""Functions of updates, which are what privacy is charged for."""

UNCHARGED = frozenset(
    {
        *("job", "policy", "privacy_required", "calibration"),
        *("budget", "ledger", "data_changed", "ledger_broken"),
    }
)
"""How a site says that nothing was begun. With any other outcome, silence included, it may have
been charged, and counts here: that a model is unprovable, too, may show only as it trains."""

MOST_TIGHT = 8
"""Sets of charges that the tightest accountant is asked for, at most: each takes it seconds."""


def _last(_: float, told: float) -> float:
    return told


_WORSE: dict[str, Callable[[float, float], float]] = {
    "noise_multiplier": min,
    "sampling_rate": max,
    "steps": max,
}
"""Where what a site tells of its settings changes, the run counts by what costs more."""


@dataclass
class _Account:
    """One site, as round after round tells of it."""

    asked: int = 0
    counted: int = 0
    at_work: bool = False
    evaluations: int = 0
    told: dict[str, float] = field(default_factory=dict)
    stated_in: int = 0
    complete: bool = False
    count: str = ""
    disclosures: dict[tuple[str, Source], Disclosure] = field(default_factory=dict)
    evaluation_noise: float | None = None
    answered: bool = False

    @property
    def trainings(self) -> int:
        """How often it may have trained; what it is at now included."""
        return self.counted + self.at_work

    @property
    def judges_exactly(self) -> bool:
        """Whether its evaluations are known to have cost nothing: no noise, or none asked for."""
        return self.evaluation_noise is None and (self.answered or not self.evaluations)

    def trained(self, number: int, site: SiteRound) -> None:
        self.at_work = site.outcome == WORKING
        if self.at_work:  # what it is at counts once it is known how that ended, or the run ends
            self.complete = False
            return
        self.asked += 1 + site.earlier
        self.counted += site.earlier
        self.complete = self.complete and not site.earlier
        if site.outcome in UNCHARGED:
            return
        self.counted += 1
        self.complete = False
        self._tell(number, site, "training")

    def judged(self, number: int, site: SiteRound) -> None:
        if site.outcome in UNCHARGED:
            return
        self.evaluations += 1
        self.answered |= site.outcome == "result"
        if site.terms.noised:
            noise = site.terms.noise_multiplier
            self.evaluation_noise = min(noise, self.evaluation_noise or math.inf)
        if self.evaluation_noise is not None:
            self.complete = False
        self._tell(number, site, "held-out")

    def _tell(self, number: int, site: SiteRound, records: Source) -> None:
        if site.outcome != "result":
            return
        for name in FIGURES:
            if name in site.metrics:
                worse = _WORSE.get(name, _last)
                self.told[name] = worse(self.told.get(name, site.metrics[name]), site.metrics[name])
        if "epsilon" in site.metrics:
            self.stated_in, self.complete = number, True
        self.count = site.terms.count or self.count
        for name in site.metrics.keys() - {*FIGURES, *OF_UPDATES}:
            noised, exact = name in site.terms.noised, name in site.terms.exact
            kind: Kind = "exact" if exact else "noised" if noised else "not known"
            before = self.disclosures.get((name, records))
            if before is None or before.kind == "noised":  # what once left exactly stays so
                self.disclosures[name, records] = Disclosure(
                    name=name,
                    records=records,
                    kind=kind,
                    noise_multiplier=site.terms.noise_multiplier if noised else None,
                )


class Spending:
    """What a run cost its sites, folded round by round."""

    def __init__(self, job: Job, rounds: Iterable[RoundRecord] = ()) -> None:
        self._job = job
        self._accounts: dict[str, _Account] = {}
        for record in rounds:
            self.fold(record)

    def fold(self, record: RoundRecord) -> None:
        """Add a round."""
        for name, site in record.sites.items():
            self._accounts.setdefault(name, _Account()).trained(record.round, site)
        for name, site in record.judged.items():
            self._accounts.setdefault(name, _Account()).judged(record.round, site)

    def costs(self, *, tight: bool) -> dict[str, SiteCost]:
        """What is known of each site, by name.

        Args:
            tight: take the tightest accountant, which may take seconds, where it is feasible.
        """
        runs = {name: self._charges(account) for name, account in self._accounts.items()}
        different = {charges for charges in runs.values() if charges is not None}
        tight = tight and len(different) <= MOST_TIGHT
        delta = self._job.privacy.delta
        found = {charges: cost_of(charges, delta, tight=tight) for charges in different}
        return {
            name: self._cost(account, runs[name], found)
            for name, account in sorted(self._accounts.items())
        }

    def _cost(
        self, account: _Account, charges: Charges | None, found: Mapping[Charges, Cost]
    ) -> SiteCost:
        told = account.told
        return SiteCost(
            asked=account.asked + account.at_work,
            counted=account.trainings,
            evaluations=0 if account.judges_exactly else account.evaluations,
            noise_multiplier=self._noise_multiplier(told),
            sampling_rate=self._sampling_rate(told),
            steps=self._steps(told),
            evaluation_noise=account.evaluation_noise,
            run=self._run(account, None if charges is None else found[charges]),
            data_set=_data_set(account),
            disclosures=tuple(account.disclosures[key] for key in sorted(account.disclosures)),
            count=account.count,
        )

    def _run(self, account: _Account, computed: Cost | None) -> Cost | None:
        job, privacy = self._job, self._job.privacy
        if not privacy.private:
            return None
        if computed is not None:
            return computed
        planned = job.evaluation.rounds_judged_by_sites(job.rounds)
        as_planned = account.trainings <= job.rounds and account.evaluations <= planned
        if privacy.target_epsilon is None or not as_planned:
            return None
        return Cost(epsilon=privacy.target_epsilon, delta=privacy.delta, accountant=TARGET)

    def _charges(self, account: _Account) -> Charges | None:
        """What the run charged at a site; None if that cannot be known."""
        noise, rate, steps = (
            self._noise_multiplier(account.told),
            self._sampling_rate(account.told),
            self._steps(account.told),
        )
        charges = []
        if account.trainings:
            if noise is None or rate is None or steps is None:
                return None
            count = steps * account.trainings
            charges.append(Charge(noise_multiplier=noise, sampling_rate=rate, steps=count))
        if not account.judges_exactly:
            if account.evaluation_noise is None:
                return None
            charges.append(
                Charge(
                    noise_multiplier=account.evaluation_noise,
                    sampling_rate=1.0,
                    steps=account.evaluations,
                )
            )
        return merge(charges)

    def _noise_multiplier(self, told: Mapping[str, float]) -> float | None:
        given = self._job.privacy.noise_multiplier or told.get("noise_multiplier", 0.0)
        return given if given > 0.0 else None

    def _sampling_rate(self, told: Mapping[str, float]) -> float | None:
        given = self._job.privacy.sampling_rate or told.get("sampling_rate", 0.0)
        return given if 0.0 < given <= 1.0 else None

    def _steps(self, told: Mapping[str, float]) -> int | None:
        rate = self._job.privacy.sampling_rate
        if rate is not None:
            return self._job.training.private_steps(rate)
        given = self._job.training.steps or round(told.get("steps", 0.0))
        return given if given > 0 else None


def cost_of(charges: Charges, delta: float, *, tight: bool) -> Cost:
    """What ``charges`` cost together."""
    bound = epsilon_bound(charges, delta)
    if all(charge.sampling_rate == 1.0 for charge in charges):
        return Cost(epsilon=bound, delta=delta, accountant=CLOSED_FORM)
    found = epsilon(charges, delta) if tight else bound
    return Cost(epsilon=found, delta=delta, accountant=TIGHT if found < bound else FAST)


def _data_set(account: _Account) -> DataSetCost | None:
    told = account.told
    if "epsilon" not in told:
        return None
    return DataSetCost(
        epsilon=told["epsilon"],
        left=told.get("epsilon_left"),
        delta=told.get("delta"),
        stated_in=account.stated_in,
        complete=account.complete,
    )

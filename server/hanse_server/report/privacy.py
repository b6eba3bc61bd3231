"""The privacy statement of a run, in words that a data-protection officer can use.

Two figures are kept apart: what this run cost, which the server computes, and what everything ever
done with a site's data cost, by the site's own ledger, where the site releases it. What is not
known is said to be not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hanse.job import Job, Privacy

from hanse_server.costs import CLOSED_FORM, FAST, TARGET, TIGHT, Cost, SiteCost
from hanse_server.report import formats
from hanse_server.report.facts import RunFacts
from hanse_server.report.releases import Release, releases
from hanse_server.statement import UNIT, seen_in_sum

NO_PRIVACY = "No privacy"
NOT_RELEASED = "not released"
NOT_KNOWN = "not known"

PERSON = (
    " A person with several records, at one site or at several, is protected less: the epsilons "
    "of those records add up."
)
MECHANISM = (
    "DP-SGD. In each step a site draws every record on its own with the sampling rate (Poisson "
    "sampling), clips the gradient of each record to the clipping norm, and adds Gaussian noise "
    "of standard deviation noise multiplier × clipping norm to their sum. Metrics that leave with "
    "noise are means of bounded values of records; their sums get Gaussian noise, too."
)
AGAINST = (
    "The server, the other sites, and whoever is given the model or any update that it was made "
    "from. The noise is added at the site, before anything leaves it."
)
ACCOUNTING = (
    "This run’s epsilon is computed here, from the job, from what sites tell of their settings, "
    "and from every round and evaluation that a site was asked for and did not refuse, whether or "
    "not its result was taken. Epsilon over all runs is the site’s own word: each keeps a ledger "
    "that is charged before the first record is drawn, over everything ever done with the same "
    "data. Where a site was interrupted, its ledger may hold more than it could tell."
)
FOUND_BY = {
    CLOSED_FORM: "closed form",
    TIGHT: "PLD",
    FAST: "RDP",
    TARGET: "the job’s target",
}
"""Short names of accountants, for a table; the statement has them in full."""


@dataclass(frozen=True, kw_only=True)
class SiteLine:
    """One site in the tables; every cell is text for people.

    Attributes:
        rounds: in which it may have been charged, of those in which it was asked.
        epsilon, delta, found_by: of this run.
        total, left, total_delta, stated_in: over all runs, by the site's own ledger.
        note: what makes the total incomplete; empty if nothing does.
    """

    name: str
    epsilon: str
    delta: str
    found_by: str
    noise_multiplier: str
    sampling_rate: str
    steps: str
    rounds: str
    evaluations: str
    total: str
    left: str
    total_delta: str
    stated_in: str
    note: str


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """What there is to be said.

    Attributes:
        sentence: the whole in a few sentences.
        terms: the particulars, as terms and descriptions.
        sites: line by line.
        releases: what left the sites beside their updates, what is outside epsilon first.
    """

    private: bool
    sentence: str
    terms: tuple[tuple[str, str], ...]
    sites: tuple[SiteLine, ...]
    releases: tuple[Release, ...]


def privacy_statement(run: RunFacts) -> PrivacyStatement:
    """The statement of a run, as far as it is."""
    private = run.job.privacy.private
    return PrivacyStatement(
        private=private,
        sentence=_sentence(run) if private else _without_privacy(run),
        terms=tuple(_terms(run.job)),
        sites=tuple(_line(name, cost) for name, cost in run.costs.items()) if private else (),
        releases=tuple(releases(run)),
    )


def took_part(run: RunFacts) -> list[SiteCost]:
    """The sites of which records may have been looked at."""
    return [cost for cost in run.costs.values() if cost.took_part]


def run_costs(run: RunFacts) -> list[Cost]:
    """What this run cost the sites that took part, where it is known."""
    return [cost.run for cost in took_part(run) if cost.run is not None]


def totals(run: RunFacts) -> list[float]:
    """Epsilon over all runs of the sites that took part, where they say so of all of it."""
    told = (cost.data_set for cost in took_part(run))
    return [each.epsilon for each in told if each is not None and each.complete]


def _terms(job: Job) -> Iterable[tuple[str, str]]:
    privacy = job.privacy
    if privacy.private:
        yield "Unit of privacy", UNIT + PERSON
        yield "Protects against", AGAINST
        yield "Mechanism", MECHANISM
        yield "Clipping norm", f"{formats.number(privacy.clipping_norm)} (L2)"
        yield "Asked for by the job", _asked(privacy)
        yield "Accounting", ACCOUNTING
    if (summed := seen_in_sum(job)) is not None:
        yield "Secure aggregation", summed


def _without_privacy(run: RunFacts) -> str:
    if not run.completed:
        return (
            "This run trains without differential privacy. It has made no model yet; nothing "
            "bounds what updates that were sent may reveal about the records they come from."
        )
    return (
        "This model was trained without differential privacy. Nothing bounds what it, or the "
        "updates that it was made from, may reveal about the records they come from."
    )


def _sentence(run: RunFacts) -> str:
    sites, known = took_part(run), run_costs(run)
    if not sites:
        return (
            "No site began anything in this run, so no record has shaped a model of it. "
            "What sites have charged to their budgets otherwise stands in their own ledgers."
        )
    if not known:
        return (
            "The job asks every site to train under differential privacy. What this run cost is "
            "not known here, as no site released the settings that it follows from: what updates "
            "may reveal about a record is bounded by each site’s own budget, which its "
            "administrator can tell."
        )
    worst = max(known, key=lambda cost: cost.epsilon)
    unknown = len(sites) - len(known)
    who = "every site" if not unknown else f"{formats.plural(len(known), 'site')} below"
    shown = "the model and its updates" if run.completed else "the updates"
    told = (
        f"In this run each record of {who} is protected by differential privacy with epsilon at "
        f"most {formats.epsilon_spent(worst.epsilon)} (delta {formats.short(worst.delta)}): with "
        f"that record or without it, the probability of anything that {shown} may show differs by "
        f"no more than a factor of {_factor(worst.epsilon)}, save for a chance of delta."
    )
    if unknown:
        told += f" Of {formats.plural(unknown, 'further site')} it is not known."
    return " ".join([told, _over_all_runs(run, len(sites)), *_outside(sites)])


def _outside(sites: Sequence[SiteCost]) -> Iterable[str]:
    """What must be said beside any epsilon: that there is something which it does not cover."""
    unnoised = sum(any(each.kind != "noised" for each in cost.disclosures) for cost in sites)
    if unnoised:
        yield f"It does not cover metrics that {formats.plural(unnoised, 'site')} released besides."


def _over_all_runs(run: RunFacts, sites: int) -> str:
    known = totals(run)
    if not known:
        return "No site released what all runs together cost its data."
    who = "every site" if len(known) == sites else f"{len(known)} of {sites} sites"
    return (
        "Over all that was ever done with the same data it is at most "
        f"{formats.epsilon_spent(max(known))}, by the ledger of {who}."
    )


def _factor(epsilon: float) -> str:
    """``e`` to the epsilon, rounded up."""
    if epsilon > 20:
        return f"e to the {formats.epsilon_spent(epsilon)}"
    factor = math.exp(epsilon)
    return f"{math.ceil(factor * 10) / 10:.1f}" if factor < 100 else f"{math.ceil(factor):,}"


def _asked(privacy: Privacy) -> str:
    noise = (
        f"epsilon {formats.number(privacy.target_epsilon)} over all rounds"
        if privacy.target_epsilon is not None
        else f"noise multiplier {formats.number(privacy.noise_multiplier)}"
    )
    rate = (
        f"sampling rate {formats.number(privacy.sampling_rate)}"
        if privacy.sampling_rate is not None
        else "sampling rate of batch size over the site’s number of records"
    )
    return f"{noise}, delta {formats.short(privacy.delta)}, {rate}"


# --- by site --------------------------------------------------------------------------------


def _line(name: str, cost: SiteCost) -> SiteLine:
    run, total = cost.run, cost.data_set
    evaluations = NOT_KNOWN if cost.evaluations else "none"
    if cost.evaluation_noise is not None:
        evaluations = f"{cost.evaluations} at noise {formats.short(cost.evaluation_noise)}"
    return SiteLine(
        name=name,
        epsilon=NOT_KNOWN if run is None else formats.epsilon_spent(run.epsilon),
        delta=formats.ABSENT if run is None else formats.short(run.delta),
        found_by=formats.ABSENT if run is None else FOUND_BY.get(run.accountant, run.accountant),
        noise_multiplier=_known(cost.noise_multiplier),
        sampling_rate=_known(cost.sampling_rate),
        steps=_known(cost.steps),
        rounds=f"{cost.counted} of {cost.asked}",
        evaluations=evaluations,
        total=NOT_RELEASED if total is None else formats.epsilon_spent(total.epsilon),
        left=_released(None if total is None else total.left, formats.epsilon_left),
        total_delta=_released(None if total is None else total.delta, formats.short),
        stated_in=formats.ABSENT if total is None else str(total.stated_in),
        note="" if total is None or total.complete else "it took part after that",
    )


def _known(value: float | None) -> str:
    return NOT_KNOWN if value is None else formats.short(value)


def _released(value: float | None, write: formats.Write) -> str:
    return NOT_RELEASED if value is None else write(value)

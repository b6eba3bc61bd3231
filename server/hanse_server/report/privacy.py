"""The privacy statement of a run, in words that a data-protection officer can use.

It says what each site released of its accounts and claims nothing for a site that keeps them to
itself. What left the sites outside epsilon is named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hanse.job import Privacy

from hanse_server.report import formats
from hanse_server.report.facts import RunFacts
from hanse_server.report.sites import SiteFacts

NO_PRIVACY = "No privacy"
NOT_RELEASED = "not released"

UNIT = (
    "One record at one site: data sets that differ by adding or removing one record "
    "(add-or-remove adjacency). A person with several records, at one site or at several, is "
    "protected less: the epsilons of those records add up."
)
MECHANISM = (
    "DP-SGD. In each step a site draws every record on its own with the sampling rate (Poisson "
    "sampling), clips the gradient of each record to the clipping norm, and adds Gaussian noise "
    "of standard deviation noise multiplier × clipping norm to their sum."
)
AGAINST = (
    "The server, the other sites, and whoever is given the model or any update that it was made "
    "from. The noise is added at the site, before anything leaves it."
)
ACCOUNTING = (
    "By each site, in a ledger of its own, before the first record is drawn; over everything ever "
    "trained on the same data, in this run and in others. The figures below are the sites’ own; "
    "where a site was interrupted, its ledger may hold more than it could tell."
)


@dataclass(frozen=True, kw_only=True)
class Release:
    """Something that left the sites outside epsilon: what, and by which way."""

    name: str
    way: str


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """What there is to be said.

    Attributes:
        sentence: the whole in one or two sentences.
        terms: the particulars, as terms and descriptions.
        outside: what was released outside epsilon.
    """

    private: bool
    sentence: str
    terms: tuple[tuple[str, str], ...]
    outside: tuple[Release, ...]


def privacy_statement(run: RunFacts) -> PrivacyStatement:
    """The statement of a run, as far as it is."""
    privacy = run.job.privacy
    if not privacy.private:
        return PrivacyStatement(
            private=False, sentence=_without_privacy(run), terms=(), outside=_outside(run)
        )
    terms = (
        ("Unit of privacy", UNIT),
        ("Protects against", AGAINST),
        ("Mechanism", MECHANISM),
        ("Clipping norm", f"{formats.number(privacy.clipping_norm)} (L2)"),
        ("Asked for by the job", _asked(privacy)),
        ("Accounting", ACCOUNTING),
    )
    return PrivacyStatement(
        private=True, sentence=_sentence(run), terms=terms, outside=_outside(run)
    )


def highest_epsilon(run: RunFacts) -> float | None:
    """The highest epsilon that any site told of, None if none did."""
    return max(_told(run.sites), default=None)


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
    trained = [site for site in run.sites if site.results]
    if not trained:
        return (
            "No update of any site was taken in this run, so no record has shaped a model of it. "
            "What sites may have charged to their budgets meanwhile stands in their own ledgers."
        )
    epsilon = max(_told(trained), default=None)
    if epsilon is None:
        return (
            "The job asks every site to train under differential privacy. No site released the "
            "epsilon that all of its updates spent: what they may reveal about a record is bounded "
            "by each site’s own budget, which its administrator can tell."
        )
    silent = len(trained) - len(_told(trained))
    who = "every site" if not silent else f"the {formats.plural(len(_told(trained)), 'site')} below"
    shown = "the model and its updates" if run.completed else "the updates"
    told = (
        f"Each training record of {who} is protected by differential privacy with epsilon at most "
        f"{formats.epsilon_spent(epsilon)}{_at_delta(trained)}: with that record or without it, "
        f"the probability of anything that {shown} may show differs by no more than a factor of "
        f"{_factor(epsilon)}, save for a chance of delta."
    )
    if silent:
        told += f" {formats.plural(silent, 'further site')} did not release what it spent."
    return told


def _told(sites: Iterable[SiteFacts]) -> list[float]:
    return [site.epsilon for site in sites if site.epsilon is not None]


def highest_delta(sites: Iterable[SiteFacts]) -> float | None:
    """The highest delta of the sites that told epsilon, None unless all of them told delta too."""
    deltas = [site.privacy.delta for site in sites if site.epsilon is not None]
    known = [delta for delta in deltas if delta is not None]
    return max(known) if known and len(known) == len(deltas) else None


def _at_delta(sites: Iterable[SiteFacts]) -> str:
    delta = highest_delta(sites)
    if delta is None:
        return " (at a delta that not every site released)"
    return f" (delta {formats.short(delta)})"


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


def _outside(run: RunFacts) -> tuple[Release, ...]:
    """What sites sent besides updates, weights and privacy figures that reveal no record."""
    senders = Counter(name for site in run.sites for name in site.metrics)
    releases = [
        Release(name=name, way=f"on training records, by {formats.plural(count, 'site')}")
        for name, count in sorted(senders.items())
    ]
    judged = sorted({name for record in run.rounds for name in record.federated})
    releases += [
        Release(name=name, way="on held-out records, by sites that evaluate") for name in judged
    ]
    rates = sum(site.privacy.sampling_rate is not None for site in run.sites)
    if rates and run.job.privacy.sampling_rate is None:
        tells = f"tells the number of training records, by {formats.plural(rates, 'site')}"
        releases.append(Release(name="sampling_rate", way=tells))
    return tuple(releases)

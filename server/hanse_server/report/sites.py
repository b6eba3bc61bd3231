"""What each site did and told over the rounds of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from hanse_server.history import MISSING, WORKING, RoundRecord, SiteRound
from hanse_server.spending import FIGURES

RESULT = "result"  # a site's outcome when its update was taken
REASON_LENGTH = 300  # characters; what a site says of itself may be of any length


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One kind of failure of a site.

    Attributes:
        label: of the refusal or failure, or ``missing``.
        last_round, last_reason: when it last happened, and what the site said of it.
    """

    label: str
    count: int
    last_round: int
    last_reason: str


@dataclass(frozen=True, kw_only=True)
class SitePrivacy:
    """The last figures on privacy that a site released; None for what it keeps to itself.

    Attributes:
        epsilon: spent on the site's data set, ever.
    """

    epsilon: float | None
    epsilon_left: float | None
    delta: float | None
    noise_multiplier: float | None
    sampling_rate: float | None


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """A site over the run.

    Attributes:
        asked, results: rounds in which it was asked, and those in which its update was taken.
        seconds: median time from the instruction to a result, None without one.
        update_norm: L2 norm of its last update, None without one.
        weights: the aggregation weights that it sent, in ascending order.
    """

    name: str
    asked: int
    results: int
    failures: tuple[Failure, ...]
    seconds: float | None
    update_norm: float | None
    weights: tuple[float, ...]
    privacy: SitePrivacy


def site_facts(rounds: Iterable[RoundRecord]) -> tuple[SiteFacts, ...]:
    """Every site of ``rounds``, by name."""
    by_site: dict[str, list[tuple[int, SiteRound]]] = {}
    for record in rounds:
        for name, site in record.sites.items():
            if site.outcome != WORKING:  # what it is at counts in the round in which it ends
                by_site.setdefault(name, []).append((record.round, site))
    return tuple(_facts(name, by_site[name]) for name in sorted(by_site))


def _facts(name: str, rounds: list[tuple[int, SiteRound]]) -> SiteFacts:
    results = [site for _, site in rounds if site.outcome == RESULT]
    return SiteFacts(
        name=name,
        asked=len(rounds),
        results=len(results),
        failures=_failures(rounds),
        seconds=statistics.median(site.seconds for site in results) if results else None,
        update_norm=results[-1].update_norm if results else None,
        weights=tuple(sorted({site.weight for site in results})),
        privacy=_privacy(rounds),
    )


def _failures(rounds: list[tuple[int, SiteRound]]) -> tuple[Failure, ...]:
    failed = [(number, site) for number, site in rounds if site.outcome != RESULT]
    found = []
    for label in dict.fromkeys(site.outcome for _, site in failed):
        of_kind = [(number, site) for number, site in failed if site.outcome == label]
        number, last = of_kind[-1]
        found.append(
            Failure(
                label=label,
                count=len(of_kind),
                last_round=number,
                last_reason=_in_words(last),
            )
        )
    return tuple(found)


def _in_words(site: SiteRound) -> str:
    if site.outcome == MISSING:
        return site.reason or "no reply by the deadline"
    if site.reason == site.outcome:
        return ""
    reason = site.reason.removeprefix(f"{site.outcome}: ")
    return reason if len(reason) <= REASON_LENGTH else reason[:REASON_LENGTH] + "…"


def _privacy(rounds: list[tuple[int, SiteRound]]) -> SitePrivacy:
    last: dict[str, float] = {}
    for _, site in rounds:
        last |= {name: site.metrics[name] for name in FIGURES if name in site.metrics}
    return SitePrivacy(
        epsilon=last.get("epsilon"),
        epsilon_left=last.get("epsilon_left"),
        delta=last.get("delta"),
        noise_multiplier=last.get("noise_multiplier"),
        sampling_rate=last.get("sampling_rate"),
    )

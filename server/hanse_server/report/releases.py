"""What left the sites of a run beside their updates, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hanse_server.report import formats
from hanse_server.report.facts import RunFacts


@dataclass(frozen=True, kw_only=True)
class Release:
    """A metric that left the sites, and by which way; how much of the page's red it deserves."""

    name: str
    way: str
    noised: bool


def releases(run: RunFacts) -> Iterable[Release]:
    """What left beside updates and figures that are functions of no record, the worst first."""
    yield from _counts(run)
    found: dict[tuple[str, str, str], list[float]] = {}
    for cost in run.costs.values():
        for each in cost.disclosures:
            key = (each.kind, each.records, each.name)
            found.setdefault(key, []).append(each.noise_multiplier or 0.0)
    ways = {
        "exact": "left as it is, outside epsilon",
        "not known": "left in a way that is not known: take it to be outside epsilon",
        "noised": "left with noise, within epsilon",
    }
    for kind, way in ways.items():
        for (of_kind, records, name), noises in sorted(found.items()):
            if of_kind == kind:
                noise = f" (noise multiplier {_range(noises)})" if kind == "noised" else ""
                told = (
                    f"of {records} records {way}{noise}, at {formats.plural(len(noises), 'site')}"
                )
                yield Release(name=name, way=told, noised=kind == "noised")


def _counts(run: RunFacts) -> Iterable[Release]:
    """Ways in which numbers of records are told."""
    public = sum(cost.count == "public" for cost in run.costs.values())
    if public:
        way = f"is the number of records, which {formats.plural(public, 'site')} make public"
        yield Release(name="num-examples", way=way, noised=False)
    rates = sum(site.privacy.sampling_rate is not None for site in run.sites)
    if rates and run.job.privacy.private and run.job.privacy.sampling_rate is None:
        tells = f"tells the number of training records, at {formats.plural(rates, 'site')}"
        yield Release(name="sampling_rate", way=tells, noised=False)


def _range(noises: Sequence[float]) -> str:
    low, high = formats.short(min(noises)), formats.short(max(noises))
    return low if low == high else f"{low} to {high}"

"""Which curves a report shows, of what its run has."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from hanse.flower import ENCODING_ERROR

from hanse_server.history import RoundRecord, SiteRound
from hanse_server.report import formats
from hanse_server.report.curves import COLOURS, Series, draw
from hanse_server.report.facts import RunFacts
from hanse_server.report.outline import by_interest
from hanse_server.report.sites import RESULT

MAX_METRICS = 8
"""Metrics that get a panel; their names come from sites, and there may be any number."""

MAX_BUDGETS = 3
"""Budgets drawn as lines; with more, the table tells them."""

TRAIN_LOSS = "train_loss"

Points = list[tuple[int, float]]

_SPREAD: dict[str, Callable[[list[float]], float]] = {
    "highest site": max,
    "median site": statistics.median,
    "lowest site": min,
}


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """What a line is, and where it ends."""

    label: str
    last: str
    colour: int
    dashed: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the report.

    Attributes:
        svg: made here, nothing of it from sites but numbers.
        description: for those who cannot see it.
    """

    title: str
    note: str
    svg: str
    description: str
    legend: tuple[LegendEntry, ...]


def panels(run: RunFacts) -> list[Panel]:
    """All curves of which there is at least one point, in the order of the page."""
    if not run.rounds:
        return []
    drawn = (_epsilon, _results, _norms, _encoding, _durations)
    found = [*_metrics(run), *(panel(run) for panel in drawn)]
    return [panel for panel in found if panel is not None]


def metrics_left_out(run: RunFacts) -> int:
    """How many metrics got no panel."""
    return max(0, len(_metric_names(run)) - MAX_METRICS)


def _metrics(run: RunFacts) -> Iterator[Panel | None]:
    for index, name in enumerate(_metric_names(run)[:MAX_METRICS]):
        yield _metric(run, f"metric-{index}", name)


def _metric(run: RunFacts, key: str, name: str) -> Panel | None:
    held_out = "sites’ held-out records"
    if any(record.is_noised(name) for record in run.rounds):
        held_out += ", with noise"
    series = [
        _over_rounds(run, held_out, 0, lambda r: r.federated.get(name)),
        _over_rounds(run, "server’s records", 1, lambda r: r.central.get(name)),
    ]
    if name == "loss":
        series.append(_over_rounds(run, "in training", 2, lambda r: r.train.get(TRAIN_LOSS)))
    return _panel(
        key,
        title=formats.metric_title(name),
        note="of the global model, after each round",
        series=series,
        write=partial(formats.metric, name),
        shares=formats.is_share(name),
    )


def _metric_names(run: RunFacts) -> list[str]:
    return by_interest({name for r in run.rounds for name in (*r.federated, *r.central)})


def _epsilon(run: RunFacts) -> Panel | None:
    return _panel(
        "epsilon",
        title="Epsilon",
        note="spent on each site’s data, ever, as the site releases it",
        series=[*_by_site(run, lambda site: site.metrics.get("epsilon")), *_budgets(run)],
        write=formats.epsilon_spent,
        from_zero=True,
    )


FAR = 10
"""A budget of which this many times the spent epsilon is left is far off: its line would press
the curves flat."""


def _budgets(run: RunFacts) -> list[Series]:
    """A bound across the panel for each budget that sites' figures tell of, unless too many."""
    stated = (site.privacy for site in run.sites)
    budgets = {
        round(each.epsilon + each.epsilon_left, 6)
        for each in stated
        if each.epsilon is not None
        and each.epsilon_left is not None
        and each.epsilon_left < FAR * each.epsilon
    }
    if len(budgets) > MAX_BUDGETS:
        return []
    ends = sorted({run.rounds[0].round, run.last_round})
    return [
        Series(label="budget", points=[(end, budget) for end in ends], dashed=True)
        for budget in sorted(budgets)
    ]


def _results(run: RunFacts) -> Panel | None:
    quorum = run.job.strategy.quorum
    return _panel(
        "results",
        title="Sites with a result",
        note="in each round, and the quorum",
        series=[
            _over_rounds(run, "sites", 0, _count_results),
            _over_rounds(run, "quorum", 0, lambda _: quorum, dashed=True),
        ],
        write=formats.number,
        from_zero=True,
    )


def _count_results(record: RoundRecord) -> float:
    return sum(site.outcome == RESULT for site in record.sites.values())


def _norms(run: RunFacts) -> Panel | None:
    return _panel(
        "norms",
        title="Size of the updates",
        note="L2 norm of each site’s update",
        series=_by_site(run, lambda site: site.update_norm if site.outcome == RESULT else None),
        write=formats.number,
        from_zero=True,
    )


def _encoding(run: RunFacts) -> Panel | None:
    return _panel(
        "encoding",
        title="What encoding changed",
        note="L2 norm of the difference over that of the update",
        series=_by_site(run, lambda site: site.metrics.get(ENCODING_ERROR)),
        write=formats.number,
        from_zero=True,
    )


def _durations(run: RunFacts) -> Panel | None:
    return _panel(
        "durations",
        title="Time of a round",
        note="in seconds, from the first instruction to the checkpoint",
        series=[_over_rounds(run, "round", 0, lambda record: record.seconds)],
        write=formats.duration,
        from_zero=True,
    )


def _over_rounds(
    run: RunFacts,
    label: str,
    colour: int,
    value: Callable[[RoundRecord], float | None],
    *,
    dashed: bool = False,
) -> Series:
    points = [(record.round, value(record)) for record in run.rounds]
    return Series(label=label, points=_finite(points), colour=colour, dashed=dashed)


def _by_site(run: RunFacts, value: Callable[[SiteRound], float | None]) -> list[Series]:
    """A line for each site; of too many sites the lowest, the median and the highest."""
    names = [site.name for site in run.sites]
    if len(names) <= COLOURS:
        return [
            Series(label=name, points=_finite(_site_points(run, name, value)), colour=index)
            for index, name in enumerate(names)
        ]
    spread: list[tuple[int, list[float]]] = [
        (record.round, [v for _, v in _finite((0, value(s)) for s in record.sites.values())])
        for record in run.rounds
    ]
    told = [(number, values) for number, values in spread if values]
    return [
        Series(
            label=label, points=[(number, pick(values)) for number, values in told], colour=index
        )
        for index, (label, pick) in enumerate(_SPREAD.items())
    ]


def _site_points(
    run: RunFacts, name: str, value: Callable[[SiteRound], float | None]
) -> Iterator[tuple[int, float | None]]:
    for record in run.rounds:
        if name in record.sites:
            yield record.round, value(record.sites[name])


def _finite(points: Iterable[tuple[int, float | None]]) -> Points:
    return [(n, value) for n, value in points if value is not None and math.isfinite(value)]


def _panel(
    key: str,
    *,
    title: str,
    note: str,
    series: Sequence[Series],
    write: Callable[[float], str],
    shares: bool = False,
    from_zero: bool = False,
) -> Panel | None:
    shown = [each for each in series if each.points]
    if all(each.dashed for each in shown):
        return None
    return Panel(
        title=title,
        note=note,
        svg=draw(key, shown, shares=shares, from_zero=from_zero),
        description=f"{title} over the rounds. "
        + " ".join(_describe(each, write) for each in shown),
        legend=tuple(
            LegendEntry(
                label=each.label,
                last=write(each.points[-1][1]),
                colour=each.colour,
                dashed=each.dashed,
            )
            for each in shown
        ),
    )


def _describe(series: Series, write: Callable[[float], str]) -> str:
    (first, start), (last, end) = series.points[0], series.points[-1]
    return f"{series.label}: {write(start)} in round {first}, {write(end)} in round {last}."

"""The top of a report: how the run ended, and its key figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hanse_server.history import Encoded, RoundRecord, encoded
from hanse_server.report import formats
from hanse_server.report.facts import UNDER_WAY, RunFacts
from hanse_server.report.privacy import NO_PRIVACY, run_costs, took_part, totals

CARDS_OF_METRICS = 3
FIRST_METRICS = ("accuracy", "auc", "loss")

Tone = Literal["good", "warn", "bad"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the run ended, in a few words, and why."""

    tone: Tone
    words: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """A number worth a large font."""

    label: str
    value: str
    note: str = ""
    bad: bool = False


def outcome(run: RunFacts) -> Outcome:
    """How the run ended, or how far it is."""
    planned, last = run.job.rounds, run.last_round
    missed = len(run.rounds) - run.completed
    if run.missed_last >= run.job.strategy.patience:
        return Outcome(
            tone="bad",
            words=f"Stopped at round {last} of {planned}",
            detail=f"{formats.plural(run.missed_last, 'round')} in a row had fewer than "
            f"{formats.plural(run.job.strategy.quorum, 'result')}; the table of sites says why.",
        )
    if last < planned:
        words = (
            f"Stopped at round {last} of {planned}" if last else f"No round of {planned} finished"
        )
        return Outcome(tone="warn", words=words, detail=_last_seen(run))
    detail = f"{formats.plural(missed, 'round')} missed the quorum." if missed else ""
    return Outcome(
        tone="good", words=f"Completed {formats.plural(planned, 'round')}", detail=detail
    )


def _last_seen(run: RunFacts) -> str:
    if run.status is None or run.status.phase not in UNDER_WAY:
        return ""
    doing = f"{run.status.phase} in round {run.status.round}"
    if run.status.waiting_for:
        doing += f", waiting for {run.status.waiting_for}"
    return (
        f"The server was last seen {doing}, at {formats.moment(run.status.updated_at)}; "
        "it may be under way still."
    )


def key_figures(run: RunFacts) -> tuple[KeyFigure, ...]:
    """The figures that all readers look for first."""
    rounds = KeyFigure(
        label="Rounds with a result",
        value=f"{run.completed} of {run.job.rounds}",
        note=f"quorum {run.job.strategy.quorum}",
    )
    failed = sum(bool(site.failures) for site in run.sites)
    answered = sum(site.results > 0 for site in run.sites)
    sites = KeyFigure(
        label="Sites that took part",
        value=f"{answered} of {len(run.sites)}",
        note=f"{failed} failed in some round" if failed else "",
    )
    time = KeyFigure(
        label="Time in rounds",
        value=formats.duration(run.seconds),
        note=f"{formats.duration(run.median_seconds)} in the median" if run.rounds else "",
    )
    travelled = encoded(run.rounds)
    spared = "" if travelled is None else f"{_travelled(travelled)}; "
    traffic = KeyFigure(
        label="Received from sites",
        value=formats.size(run.bytes_up),
        note=f"{spared}sent to sites: {formats.size(run.bytes_down)}",
    )
    return (*_metrics(run), _privacy(run), rounds, sites, time, traffic)


def _travelled(found: Encoded) -> str:
    """How updates were encoded, and what that spared."""
    names = ", ".join(found.encodings)
    return f"updates as {names}, {100 * found.share:.1f} % of {formats.size(found.plain_bytes)}"


def by_interest(names: set[str]) -> list[str]:
    """Names of metrics, those that everybody looks for first, then by the alphabet."""
    first = [name for name in FIRST_METRICS if name in names]
    return first + sorted(names - set(first))


def _metrics(run: RunFacts) -> list[KeyFigure]:
    record = run.last_judged
    if record is None:
        return []
    values = record.central or record.federated
    source = "on the server’s records" if record.central else "on the sites’ held-out records"
    return [
        KeyFigure(
            label=formats.metric_title(name),
            value=formats.metric(name, values[name]),
            note=f"{source}{_noise(record, name)}, round {record.round}",
        )
        for name in by_interest(set(values))[:CARDS_OF_METRICS]
    ]


def _noise(record: RoundRecord, name: str) -> str:
    """A word of warning where what is shown is a noised value, however good the model is."""
    return ", with noise" if not record.central and record.is_noised(name) else ""


def _privacy(run: RunFacts) -> KeyFigure:
    label = "Epsilon of this run, highest at a site"
    if not run.job.privacy.private:
        return KeyFigure(label=label, value=NO_PRIVACY, note="epsilon is unbounded", bad=True)
    sites, known, all_runs = took_part(run), run_costs(run), totals(run)
    if not known:
        note = "not known" if sites else "no site began anything"
        return KeyFigure(label=label, value=formats.ABSENT, note=note)
    worst = max(known, key=lambda cost: cost.epsilon)
    notes = [f"delta {formats.short(worst.delta)}"]
    if len(known) < len(sites):
        notes.append(f"not known of {formats.plural(len(sites) - len(known), 'site')}")
    if all_runs:
        notes.append(f"over all runs {formats.epsilon_spent(max(all_runs))}, by sites’ own ledgers")
    return KeyFigure(label=label, value=formats.epsilon_spent(worst.epsilon), note="; ".join(notes))

"""What `hanse audit` prints: a table for people, of the same facts as its JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hanse_client.canaries.verdict import CAVEAT, Audit

_MEANING = {
    "gap": "clip and sampling rate, by canaries",
    "noise": "noise, where no record is",
    "fillers": "clip, sampling rate, divisor",
    "spread": "whether each record is drawn alone",
    "right": "all of it together",
}


def audit_result(audit: Audit) -> dict[str, Any]:
    """The audit as plain values."""
    findings = [asdict(each) | {"ok": each.ok} for each in audit.findings]
    return asdict(audit) | {
        "findings": findings,
        "passed": not audit.faults,
        "faults": audit.faults,
        "verdict": audit.verdict,
        "caveat": CAVEAT,
    }


def audit_view(audit: Audit) -> RenderableType:
    """The audit for people."""
    return Group(_mechanism(audit), _epsilons(audit), _findings(audit), _verdict(audit))


def _mechanism(audit: Audit) -> Text:
    mechanism = audit.mechanism
    steps = f"{mechanism.steps}"
    if mechanism.steps < audit.run_steps:
        steps = f"the first {mechanism.steps} of {audit.run_steps}"
    return Text(
        f"{audit.job}: {steps} steps, sampling rate {mechanism.sampling_rate:.4g}, noise "
        f"multiplier {mechanism.noise_multiplier:.4g}, clipping norm {audit.clipping_norm:g}; "
        f"backend {audit.backend} on {audit.device}, {audit.seconds:.0f} s"
    )


def _epsilons(audit: Audit) -> Table:
    table = Table("", "", show_header=False, box=None)
    table.add_row(
        "epsilon claimed", f"at most {audit.claimed:.3g} at delta {audit.delta:g}, by accounting"
    )
    table.add_row(
        "epsilon found",
        f"at least {audit.at_least:.3g} (95 % confidence): {audit.right} of {audit.guesses} "
        f"guesses right about {audit.canaries} canaries",
    )
    return table


def _findings(audit: Audit) -> Table:
    table = Table(
        "statistic", "found", "of a correct engine", "", "what it tells of",
        caption="in clipping norms; right in guesses", caption_justify="left",
    )  # fmt: skip
    for each in audit.findings:
        mark = Text("ok", style="green") if each.ok else Text("FAIL", style="red")
        limits = f"{each.band.low:.4g} to {each.band.high:.4g}"
        table.add_row(each.name, f"{each.value:.4g}", limits, mark, _MEANING[each.name])
    return table


def _verdict(audit: Audit) -> Text:
    told = Text(audit.verdict, style="bold red" if audit.faults else "bold green")
    alarms = f"A correct engine fails in one audit of {1 / audit.false_alarms:.0f}."
    return told.append(f"\n{CAVEAT} {alarms}", style="not bold default")

"""What the administrator's books say: the ledger's spending and the audit trail."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hanse_client.ledger_reader import LedgerReader
from hanse_client.site import Site


def ledger_path(site: Site) -> Path:
    """Where a site's ledger is."""
    return site.state / "ledger.sqlite"


def audit_path(site: Site) -> Path:
    """Where a site's audit trail is."""
    return site.state / "audit.jsonl"


def ledger_result(site: Site) -> dict[str, Any]:
    """What was spent, by data set, with every entry."""
    budget = {"epsilon": site.budget.epsilon, "delta": site.budget.delta}
    if not ledger_path(site).exists():
        return {"site": site.name, "budget": budget, "data_sets": []}
    with LedgerReader(ledger_path(site)) as ledger:
        data_sets = [_data_set(ledger, each, site) for each in ledger.data_sets()]
    return {"site": site.name, "budget": budget, "data_sets": data_sets}


def _data_set(ledger: LedgerReader, fingerprint: str, site: Site) -> dict[str, Any]:
    stated = ledger.statement(fingerprint, site.budget)
    return {
        "fingerprint": fingerprint,
        "epsilon": stated.spent,
        "left": stated.left,
        "delta": stated.delta,
        "rounds": stated.rounds,
        "rounds_without_privacy": stated.unprotected,
        "entries": [
            {
                "time": entry.reserved_at,
                "run": str(entry.run_id),
                "round": entry.server_round,
                "job": entry.job_digest,
                "message": entry.message_id,
                "state": entry.state,
                "noise_multiplier": entry.charge.noise_multiplier,
                "sampling_rate": entry.charge.sampling_rate,
                "steps": entry.charge.steps,
            }
            for entry in ledger.entries(fingerprint)
        ],
    }


def ledger_view(result: dict[str, Any]) -> RenderableType:
    """The ledger, for people."""
    budget = result["budget"]
    head = Text(
        f"{result['site']}: budget epsilon {budget['epsilon']:g} at delta {budget['delta']:g}"
    )
    if not result["data_sets"]:
        return Group(head, Text("nothing is spent"))
    parts: list[RenderableType] = [head]
    for each in result["data_sets"]:
        parts.append(
            Text(
                f"data {each['fingerprint'][:12]}: epsilon {each['epsilon']:.4f} spent in "
                f"{each['rounds']} rounds, {each['left']:.4f} left"
            )
        )
        if each["rounds_without_privacy"]:
            told = f"{each['rounds_without_privacy']} rounds trained on it with no privacy: "
            parts.append(Text(told + "no epsilon bounds what they gave away", style="bold red"))
        table = Table("when", "run", "round", "noise", "rate", "steps", "state")
        for entry in each["entries"]:
            table.add_row(
                _when(entry["time"]),
                entry["run"],
                str(entry["round"]),
                f"{entry['noise_multiplier']:.4g}",
                f"{entry['sampling_rate']:.4g}",
                str(entry["steps"]),
                entry["state"],
            )
        parts.append(table)
    return Group(*parts)


def audit_view(lines: list[dict[str, Any]]) -> RenderableType:
    """The audit trail, for people."""
    if not lines:
        return Text("nothing was asked, and nothing left")
    table = Table("when", "event", "type", "round", "bytes", "metrics, or reason")
    for line in lines:
        metrics = {
            name: value
            for record in line.get("metrics", {}).values()
            for name, value in record.items()
        }
        told = line.get("reason") or ", ".join(sorted(metrics))
        table.add_row(
            _when(line["time"]),
            line["event"],
            line["type"],
            line.get("round", ""),
            str(line.get("bytes", "")),
            told,
        )
    return table


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))

"""What the operator's commands print: tables for people, of the same facts as their JSON."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hanse.expiry import SOON, days_left
from hanse.job import Job
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from hanse_server.history import WORKING, Encoded, RoundRecord, encoded, read_history
from hanse_server.provisioning.federation import Provisioned
from hanse_server.provisioning.renewal import Ending
from hanse_server.statement import NO_PRIVACY
from hanse_server.status import Status, clock


def run_outcome(job: Job, folder: Path) -> dict[str, Any]:
    """How a run ended: rounds, the last metrics, each site's last word, bytes and seconds."""
    history = read_history(folder)
    judged = [line for line in history if line["federated"] or line["central"]]
    travelled = encoded(map(RoundRecord.from_line, history))
    sites: dict[str, dict[str, Any]] = {}
    for line in history:
        for name, site in line["sites"].items():
            entry = sites.setdefault(name, {"rounds": 0})
            if site["outcome"] == "result":
                entry["rounds"] += 1
                entry |= site["metrics"]
            elif site["outcome"] != WORKING:
                entry["last_failure"] = site["reason"] or site["outcome"]
    return {
        "job": job.name,
        "private": job.privacy.private,
        "rounds": len(history),
        "federated": judged[-1]["federated"] if judged else {},
        "central": judged[-1]["central"] if judged else {},
        "noised": _noised(judged[-1]) if judged else [],
        "sites": sites,
        "encoded": None if travelled is None else asdict(travelled),
        "bytes_up": sum(line["bytes_up"] for line in history),
        "bytes_down": sum(line["bytes_down"] for line in history),
        "seconds": round(sum(line["seconds"] for line in history), 3),
        "workspace": str(folder),
        "model": str(folder / "models" / "last.safetensors"),
    }


def _noised(line: dict[str, Any]) -> list[str]:
    """Names of the federated metrics of a round that left at least one site with noise."""
    record = RoundRecord.from_line(line)
    return sorted(name for name in record.federated if record.is_noised(name))


def outcome_view(outcome: dict[str, Any]) -> RenderableType:
    """The outcome of a run, for people."""
    table = Table("", Column(overflow="fold"), show_header=False, box=None)
    table.add_row("rounds", str(outcome["rounds"]))
    for source in ("central", "federated"):
        for name, value in outcome[source].items():
            noise = ", with noise" if source == "federated" and name in outcome["noised"] else ""
            table.add_row(f"{name} ({source}{noise})", f"{value:.4f}")
    spent = [site["epsilon"] for site in outcome["sites"].values() if "epsilon" in site]
    if not outcome["private"]:
        table.add_row("privacy", Text(NO_PRIVACY.partition(":")[0], style="bold red"))
    elif spent:
        table.add_row("epsilon", f"at most {max(spent):.3f} at a site")
    table.add_row("seconds", f"{outcome['seconds']:.1f}")
    table.add_row("up, down", f"{decimal(outcome['bytes_up'])}, {decimal(outcome['bytes_down'])}")
    if outcome["encoded"]:
        table.add_row("updates", encoded_words(Encoded(**outcome["encoded"])))
    table.add_row("model", outcome["model"])
    return table


def encoded_words(found: Encoded) -> str:
    """How updates travelled, and what that spared."""
    names = ", ".join(found.encodings)
    return f"{names}: {decimal(found.bytes)}, {found.share:.1%} of {decimal(found.plain_bytes)}"


def status_line(status: Status) -> Text:
    """The round, the phase, and what is waited for."""
    line = Text(f"round {status.round} of {status.rounds}: ")
    if status.phase == "waiting":  # for sites to connect
        return line.append(f"waiting, {status.waiting_for}")
    line.append(status.phase)
    return line.append(f", waiting for {status.waiting_for}") if status.waiting_for else line


def status_view(status: Status, *, running: bool) -> RenderableType:
    """What a server does at this moment, for people.

    Args:
        running: whether there is a server; if not, the status is its last word.
    """
    now = time.time()
    head = status_line(status)
    head.append(f" (as of {now - status.updated_at:.0f} s ago)")
    if not running:
        ended = Text("no server runs on this workspace now")
        if status.phase != "done":
            ended.append("; `hanse server run` goes on where it stopped")
        return Group(head, ended)
    connected = Text("connected: " + (", ".join(status.connected) or "no site"))
    lines: list[RenderableType] = [head, connected]
    if status.awaited:
        table = Table("awaited", "for", "at most until")
        for each in status.awaited:
            table.add_row(each.site, f"{now - each.since:.0f} s", clock(each.until))
        lines.append(table)
    if status.refused:
        table = Table("last refused", "round", Column("why", overflow="fold"))
        for refused in status.refused:
            table.add_row(refused.site, str(refused.round), refused.reason)
        lines.append(table)
    return Group(*lines)


def provisioned_view(
    made: Provisioned, removed: Collection[str] = (), retired: Collection[str] = ()
) -> RenderableType:
    """What `hanse provision` did and what is to be done next, for people."""
    lines: list[RenderableType] = []
    if made.added:
        table = Table("site", "kit to bring to its administrator", "key in it", "valid until")
        for site in made.added:
            kept = "yes: bring it by hand" if site.key_in_kit else "no"
            table.add_row(site.name, str(site.kit), kept, f"{site.expires:%Y-%m-%d}")
        lines.append(table)
    for site in made.renewed:
        lines.append(Text(f"renewed: {site.name}, until {site.expires:%Y-%m-%d}"))
        lines.append(Text(f"  bring to its administrator: {site.kit}", overflow="fold"))
        lines.append(Text(f"  fingerprint of the key, to compare: {site.key_fingerprint}"))
        lines.append(Text("  its certificate of before is let in too, until it ends or you"))
        lines.append(Text(f"  have seen the new one: hanse provision --retire {site.name}"))
    if retired:
        lines.append(Text(f"let in with the latest certificate only: {', '.join(retired)}"))
    if made.kept:
        lines.append(Text(f"registered before, and kept: {', '.join(made.kept)}"))
    if removed:
        lines.append(Text(f"shut out from now on: {', '.join(removed)}"))
    lines.append(Text(f"server's certificate: until {made.server_expires:%Y-%m-%d}"))
    folder = made.layout.folder
    lines.append(Text(f"start the server with: hanse server run JOB --federation {folder}"))
    return Group(*lines)


def endings_view(found: list[Ending]) -> RenderableType:
    """When the certificates of a federation end, for people."""
    table = Table("certificate", "fingerprint", "valid until", "days left")
    for each in found:
        whose = f"{each.whose} (before its renewal)" if each.earlier else each.whose
        if each.expires is None:
            table.add_row(whose, each.fingerprint[:16], "not in sites.toml", "")
            continue
        days = days_left(each.expires)
        style = "bold red" if days < SOON.days else ""
        until = f"{each.expires:%Y-%m-%d}"
        table.add_row(whose, each.fingerprint[:16], until, Text(str(days), style=style))
    return table

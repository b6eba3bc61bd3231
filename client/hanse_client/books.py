"""What the administrator's books say: the ledger's spending and the audit trail."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from hanse.errors import LedgerBrokenError
from hanse.records import fingerprints
from pydantic import BaseModel, Field, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hanse_client.audit import AuditTrail, last_digest, read_audit, read_chained
from hanse_client.held import verify_held
from hanse_client.ledger.book import Account, Book, short
from hanse_client.ledger.ledger import Ledger
from hanse_client.ledger.reader import read_ledger
from hanse_client.ledger.verify import verify_ledger
from hanse_client.outbox import Outbox
from hanse_client.site import Site


def ledger_path(site: Site) -> Path:
    """Where a site's ledger is."""
    return site.state / "ledger.sqlite"


def audit_path(site: Site) -> Path:
    """Where a site's audit trail is."""
    return site.state / "audit.jsonl"


def outbox_path(site: Site) -> Path:
    """Where a site's outbox is."""
    return site.state / "outbox.sqlite"


def leftovers_path(site: Site) -> Path:
    """Where a site keeps what it has left out of its updates."""
    return site.state / "leftovers"


def metrics_path(site: Site) -> Path:
    """Where a site behind a SuperNode writes its metrics."""
    return site.state / "metrics.prom"


def ledger_result(site: Site, *, verify: bool = False) -> dict[str, Any]:
    """What was spent, by account, with every charge.

    Args:
        verify: whether to hold the ledger against the audit trail; done anyway where there is
            no ledger, so that one that was removed does not pass for nothing spent.

    Raises:
        LedgerBrokenError: if a row was changed; with ``verify``, if the two do not agree.
    """
    path, budget = ledger_path(site), site.budget
    result: dict[str, Any] = {"site": site.name, "budget": budget.model_dump()}
    if verify or not path.exists():
        found = verify_ledger(path, audit_path(site), budget.delta)
        result |= {"verified": asdict(found)} if verify else {}
    book = read_ledger(path) if path.exists() else Book()
    result["accounts"] = [_account(book, account, site) for account in book.accounts()]
    return result


def audit_result(site: Site, *, verify: bool = False) -> dict[str, Any]:
    """What was asked and what left, line by line.

    Args:
        verify: whether to check that each line follows from the one before it, that none is
            missing that the ledger knows of, and that the outbox holds nothing untold.

    Raises:
        LedgerBrokenError: if a line is damaged; with ``verify``, if one was changed or removed.
    """
    path = audit_path(site)
    result: dict[str, Any] = {"verified": verify}
    if verify:
        found = verify_ledger(ledger_path(site), path, site.budget.delta)
        result["untold"] = found.rows - found.told
        # The outbox first: a reply is told of before it is put there.
        waiting = [*Outbox.look_into(outbox_path(site))] if outbox_path(site).exists() else []
        result["lines"] = _told_lines(path, read_chained(path))
        result["held"] = verify_held(waiting, result["lines"])
    else:
        result["lines"] = _told_lines(path, read_audit(path))
    return result | {"last": last_digest(path)}


class _Told(BaseModel):
    """What is shown of a line, where it tells of that."""

    time: Annotated[float, Field(ge=0.0, lt=2.0**33)]
    event: str
    type: str = ""
    round: int | str = ""  # of a reply, what the server calls its group
    bytes: int = 0
    reason: str | None = None
    account: int = 0
    charge: int = 0
    steps: int = 0
    noise_multiplier: float = 0.0
    sampling_rate: float = 0.0
    fingerprints: list[str] = []
    metrics: dict[str, dict[str, Any]] = {}
    kinds: dict[Literal["public", "noised", "exact"], list[str]] = {}


def _told_lines(path: Path, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            _Told.model_validate(line, strict=True)
        except ValidationError as odd:
            raise LedgerBrokenError(f"{path}: line {number} is damaged") from odd
    return lines


def adopt_data(site: Site, account: int | None) -> None:
    """Let an account go on with the data of a site's file; with None, a fresh account.

    Raises:
        LedgerError: if there is no such account, or a client holds the ledger.
        DataChangedError: if a fresh account is asked for data that belongs to one.
    """
    with Ledger(ledger_path(site)) as ledger:
        ledger.anchor(AuditTrail(audit_path(site)))
        ledger.adopt(fingerprints(site.data), account)


def _account(book: Book, account: Account, site: Site) -> dict[str, Any]:
    stated = book.statement(next(iter(account.data)), site.budget)
    return {
        "account": account.number,
        "data": [{"fingerprint": each, "since": since} for each, since in account.data.items()],
        "epsilon": stated.spent,
        "left": stated.left,
        "delta": stated.delta,
        "rounds": stated.rounds,
        "evaluations": stated.evaluations,
        "rounds_without_privacy": stated.unprotected,
        "entries": [
            {
                "time": entry.reserved_at,
                "type": entry.instruction.kind,
                "run": str(entry.instruction.run_id),
                "round": entry.instruction.server_round,
                "job": entry.instruction.job_digest,
                "message": entry.instruction.message_id,
                "state": entry.state,
                "noise_multiplier": entry.charge.noise_multiplier,
                "sampling_rate": entry.charge.sampling_rate,
                "steps": entry.charge.steps,
            }
            for _, entry in sorted(account.entries.items())
        ],
    }


def ledger_view(result: dict[str, Any]) -> RenderableType:
    """The ledger, for people."""
    budget = result["budget"]
    parts: list[RenderableType] = [
        Text(f"{result['site']}: budget epsilon {budget['epsilon']:g} at delta {budget['delta']:g}")
    ]
    for account in result["accounts"]:
        parts += _account_view(account)
    if not result["accounts"]:
        parts.append(Text("nothing is spent"))
    if "verified" in result:
        parts.append(_verified_view(result["verified"]))
    return Group(*parts)


def _account_view(account: dict[str, Any]) -> list[RenderableType]:
    spent_in = counted(account["rounds"], "round")
    if account["evaluations"]:
        spent_in += " and " + counted(account["evaluations"], "evaluation")
    number, spent, left = account["account"], account["epsilon"], account["left"]
    parts: list[RenderableType] = [
        Text(f"\naccount {number}: epsilon {spent:.4f} spent in {spent_in}, {left:.4f} left")
    ]
    parts += [
        Text(f"  data {short(each['fingerprint'])} since {_when(each['since'])}")
        for each in account["data"]
    ]
    if account["rounds_without_privacy"]:
        bare = counted(account["rounds_without_privacy"], "round")
        told = f"  {bare} trained on it with no privacy: no epsilon bounds what that gave away"
        parts.append(Text(told, style="bold red"))
    table = Table("when", "type", "run", "round", "noise", "rate", "steps", "state")
    for entry in account["entries"]:
        table.add_row(
            _when(entry["time"]),
            entry["type"],
            entry["run"],
            str(entry["round"]),
            f"{entry['noise_multiplier']:.4g}",
            f"{entry['sampling_rate']:.4g}",
            str(entry["steps"]),
            entry["state"],
        )
    return [*parts, table] if account["entries"] else parts


def _verified_view(found: dict[str, Any]) -> Text:
    told = [
        f"\nverified: each of the {found['rows']} rows follows from the one before it, and the "
        "audit trail tells of them"
    ]
    if found["told"] < found["rows"]:
        told.append("but for the last, which the next start of the client will tell there")
    told += [
        f"account {number}: a recount from the audit trail alone gives epsilon {epsilon:.4f}"
        for number, epsilon in found["recounted"].items()
    ]
    told.append(f"digest of the last row, to note elsewhere:\n{found['digest']}")
    return Text("\n".join(told))


def audit_view(lines: list[dict[str, Any]]) -> RenderableType:
    """The audit trail, for people."""
    if not lines:
        return Text("nothing was asked, and nothing left")
    table = Table("when", "event", "type", "round", "bytes", "metrics, or reason")
    for line in lines:
        table.add_row(
            _when(line["time"]),
            line["event"].replace("_", " "),
            line.get("type", ""),
            str(line.get("round", "")),
            str(line.get("bytes", "")),
            _told(line),
        )
    return table


def _told(line: dict[str, Any]) -> str:
    """What a line says beside its event."""
    if line.keys() >= {"steps", "noise_multiplier", "sampling_rate"}:
        noise, rate = line["noise_multiplier"], line["sampling_rate"]
        return f"{counted(line['steps'], 'step')}, noise {noise:.4g}, rate {rate:.4g}"
    if "fingerprints" in line:
        data = " and ".join(map(short, line["fingerprints"]))
        return f"account {line.get('account', '?')}: {data}"
    if "charge" in line:
        return f"the charge of row {line['charge']}"
    metrics = sorted({name for record in line.get("metrics", {}).values() for name in record})
    marks = {name: _MARKS[kind] for kind, names in line.get("kinds", {}).items() for name in names}
    return str(line.get("reason") or ", ".join(f"{name}{marks.get(name, '')}" for name in metrics))


_MARKS = {"public": "", "noised": " (noised)", "exact": " (exact)"}
"""How a metric came about that left."""


def counted(number: int, noun: str, several: str = "") -> str:
    """A number of things, in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {several or f'{noun}s'}"


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))

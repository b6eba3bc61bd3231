"""Runs with a history made by hand, and their report, read as a browser would."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hanse.aggregation import StrategyChoice
from hanse.job import (
    Job,
    Privacy,
    TaskChoice,
    Training,
)
from hanse_server.history import RoundRecord, SiteRound
from hanse_server.report import write_report
from hanse_server.workspace import Workspace

PRIVATE = Privacy(target_epsilon=3.0, clipping_norm=2.0, sampling_rate=1.0)
NO_PRIVACY = Privacy(mechanism="none")
STARTED = 1_772_400_000.0  # 2026-03-01 21:20 UTC
VOID = {"meta", "br", "use"}


def job(*, rounds: int = 3, privacy: Privacy = PRIVATE, **more: Any) -> Job:
    given: dict[str, Any] = {
        "name": "heart",
        "rounds": rounds,
        "task": TaskChoice(name="tabular", options={"model": {"kind": "linear"}}),
        "training": Training(steps=1),
        "privacy": privacy,
        "strategy": StrategyChoice(quorum=2),
    }
    return Job(**given | more)


def stated(epsilon: float, **more: float) -> dict[str, float]:
    return {"epsilon": epsilon, "epsilon_left": 3.0 - epsilon, "delta": 1e-5} | more


def result(metrics: dict[str, float] | None = None, **more: Any) -> SiteRound:
    given: dict[str, Any] = {"outcome": "result", "seconds": 0.5, "weight": 1.0, "update_norm": 0.7}
    return SiteRound(metrics=metrics or {}, **given | more)


def record(number: int, sites: dict[str, SiteRound], **more: Any) -> RoundRecord:
    given: dict[str, Any] = {
        "outcome": "completed",
        "started_at": STARTED + 60 * number,
        "seconds": 2.0,
        "train": {},
        "federated": {},
        "central": {},
        "bytes_up": 1_000_000,
        "bytes_down": 500_000,
    }
    return RoundRecord(round=number, sites=sites, **given | more)


@dataclass
class Table:
    caption: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def row(self, first: str) -> dict[str, str]:
        cells = next(cells for cells in self.rows if cells[0] == first)
        return dict(zip(self.header, cells, strict=True))


class Page(HTMLParser):
    """A report, taken apart: its tags, its tables, and the text that a reader sees."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[Table] = []
        self.words: list[str] = []
        self.inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()
        assert not self.inside, f"never closed: {self.inside}"
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append(Table())
        elif tag == "tr" and self.in_(["tbody"]):
            self.tables[-1].rows.append([])
        elif tag in ("td", "th") and self.in_(["tbody"]):
            self.tables[-1].rows[-1].append("")
        elif tag in ("td", "th") and self.in_(["thead"]):
            self.tables[-1].header.append("")
        if tag not in VOID:
            self.inside.append((tag, dict(attrs)))
        self.words.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.inside.pop()[0] == tag
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.in_(["style"]):
            return
        self.words.append(data)
        if self.in_(["caption"]):
            self.tables[-1].caption += data
        elif self.in_(["tbody", "td"]) or self.in_(["tbody", "th"]):
            cells = self.tables[-1].rows[-1]
            cells[-1] = " ".join(f"{cells[-1]} {data}".split())
        elif self.in_(["thead", "td"]) or self.in_(["thead", "th"]):
            header = self.tables[-1].header
            header[-1] = " ".join(f"{header[-1]} {data}".split())

    def in_(self, tags: Iterable[str]) -> bool:
        open_tags = [tag for tag, _ in self.inside]
        return all(tag in open_tags for tag in tags)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]

    def table(self, caption: str) -> Table:
        return next(table for table in self.tables if table.caption.startswith(caption))


@dataclass
class Run:
    """A workspace to be filled, and its report."""

    folder: Path

    def write(self, of: Job, records: Iterable[RoundRecord] = ()) -> None:
        workspace = Workspace(self.folder, of)
        for each in records:
            workspace.append(each)
        run_file = self.folder / "run.json"
        run = json.loads(run_file.read_text()) | {"started_at": STARTED}
        run_file.write_text(json.dumps(run))

    def report(self) -> Page:
        written = write_report(self.folder, self.folder / "report.html")
        assert written == self.folder / "report.html"
        return Page(written.read_text(encoding="utf-8"))


def three_rounds(**of_cleveland: float) -> list[RoundRecord]:
    """A run in which cleveland does all, and hungary is late once."""
    return [
        record(
            number,
            {
                "cleveland": result(
                    stated(number - 0.0019, noise_multiplier=11.237, train_loss=0.7, **of_cleveland)
                ),
                "hungary": result({"epsilon": 0.5 * number})
                if number != 2
                else SiteRound(outcome="missing", seconds=120.0),
            },
            federated={"accuracy": 0.7 + number / 25, "auc": 0.85, "loss": 0.6 - number / 10},
        )
        for number in (1, 2, 3)
    ]

"""The rounds of a run, a line each: what every site did, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hanse.parsing import parse_json
from pydantic import TypeAdapter
from pydantic_core import to_json

from hanse_server.durable import unreadable


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms metrics left a site, as the site says; nothing of it if it says nothing.

    Attributes:
        count: ``public`` where the weight is the number of records, ``declared`` where it is a
            constant in its place, and empty if the site does not say.
        noised: names of the metrics that left with noise, charged to the site's budget.
        exact: names of those that left as they are, outside epsilon.
        noise_multiplier: of the noised ones together; 0 without any.
    """

    count: str = ""
    noised: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    noise_multiplier: float = 0.0


MISSING = "missing"
"""The outcome of a site whose reply did not come in time."""

WORKING = "working"
"""The outcome of a site that is at work still: its reply counts in the round in which it comes."""


@dataclass(frozen=True, kw_only=True)
class SiteRound:
    """What one site did in one round.

    Attributes:
        outcome: ``result``, or the label of the refusal or failure, or ``missing``, or
            ``working``.
        seconds: from the instruction to the reply.
        update_norm: L2 norm of its update as it came; None where there is none, or it was masked.
        clipped: whether it was scaled down to the largest norm that the job lets count.
        staleness: rounds that ended between the instruction and the reply.
        terms: on which ``metrics`` left the site.
        reply: the id of the instruction that its reply answered; empty where none came.
        earlier: how often it may have trained before in this round, in sessions of secure
            aggregation that could not go on.
        encoding: of its update; ``plain`` without any.
        bytes: of its update's arrays as they came.
        plain_bytes: those that the whole update has in the model's dtypes.
    """

    outcome: str
    seconds: float
    weight: float = 0.0
    update_norm: float | None = None
    clipped: bool = False
    staleness: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    terms: Terms = field(default_factory=Terms)
    reply: str = ""
    earlier: int = 0
    encoding: str = "plain"
    bytes: int = 0
    plain_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One line of the history.

    Attributes:
        sites: what each site that was asked to train did.
        judged: what each did that was asked to judge the model.
    """

    round: int
    outcome: str
    started_at: float
    seconds: float
    sites: dict[str, SiteRound]
    train: dict[str, float]
    federated: dict[str, float]
    central: dict[str, float]
    bytes_up: int
    bytes_down: int
    judged: dict[str, SiteRound] = field(default_factory=dict)

    def is_noised(self, metric: str) -> bool:
        """Whether a federated metric is made of values that left at least one site with noise."""
        return any(metric in site.terms.noised for site in self.judged.values())

    def to_line(self) -> bytes:
        """The record as a line of the history, its end included."""
        return to_json(self, inf_nan_mode="constants") + b"\n"

    @staticmethod
    def from_line(line: dict[str, Any]) -> RoundRecord:
        """The record that a line of the history was written from.

        Raises:
            TypeError: if it is of another form.
        """
        sites, judged = (_sites(line[key]) for key in ("sites", "judged"))
        return RoundRecord(**line | {"sites": sites, "judged": judged})


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """How the updates of a run travelled.

    Attributes:
        encodings: by name, in the order of the alphabet.
        bytes: of all updates' arrays as they came.
        plain_bytes: that they would have taken in the model's dtypes, with all that the job lets
            them leave out.
    """

    encodings: tuple[str, ...]
    bytes: int
    plain_bytes: int

    @property
    def share(self) -> float:
        """Of the plain bytes, how many travelled."""
        return self.bytes / self.plain_bytes


def encoded(rounds: Iterable[RoundRecord]) -> Encoded | None:
    """Of updates that took fewer bytes than the model, or were encoded at all; None without."""
    sites = [site for record in rounds for site in record.sites.values() if site.plain_bytes]
    names = tuple(sorted({site.encoding for site in sites}))
    found = Encoded(
        encodings=names,
        bytes=sum(site.bytes for site in sites),
        plain_bytes=sum(site.plain_bytes for site in sites),
    )
    as_it_is = names == (SiteRound.encoding,) and found.bytes == found.plain_bytes
    return None if not sites or as_it_is else found


def _sites(line: dict[str, Any]) -> dict[str, SiteRound]:
    return {
        name: SiteRound(**site | {"terms": _terms(site["terms"])}) for name, site in line.items()
    }


def _terms(line: dict[str, Any]) -> Terms:
    return Terms(**line | {"noised": tuple(line["noised"]), "exact": tuple(line["exact"])})


_RECORD = TypeAdapter(RoundRecord)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a workspace in their order; a line cut off by a crash is left out.

    Raises:
        WorkspaceError: if a line is damaged in another way.
    """
    file = folder / "history.jsonl"
    if not file.exists():
        return []
    *whole, _ = file.read_bytes().split(b"\n")  # a crash cuts off the last one, before its end
    return [_read_line(file, number, text) for number, text in enumerate(whole, start=1)]


def _read_line(file: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        _RECORD.validate_json(text, strict=True)  # types
        record = RoundRecord.from_line(parse_json(text))  # names
    except (ValueError, KeyError, TypeError) as damaged:
        raise unreadable(file, f"line {number} is damaged") from damaged
    return asdict(record)

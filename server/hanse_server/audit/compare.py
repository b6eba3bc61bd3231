"""A site's trail beside the server's: what left there is what was accepted here.

A site's trail holds no data: its administrator can hand it over, and the two accounts, kept by two
parties that need not trust each other, must come to the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanse.errors import TrailError
from hanse.trail import chained_lines

from hanse_server.audit.account import Account, Arrived
from hanse_server.audit.digests import metrics_digest

_ANSWERS = ("released", "refused", "failed")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What both trails say of one site.

    Attributes:
        answered: instructions that the site answered, by its own account.
        accepted: of these, those whose result the server accepted.
    """

    site: str
    answered: int
    accepted: int


def compare(path: Path, account: Account) -> Agreement:
    """Hold a site's trail against the server's ``account`` of the run.

    Raises:
        TrailError: if the site's trail is broken, tells of an instruction that the server's does
            not, or of another content than was accepted, or does not tell of what was.
    """
    if not path.exists():
        raise TrailError(f"{path} is not there", remedy="Name a site's audit.jsonl.")
    answers = [line for line in chained_lines(path, TrailError) if _of_run(line, account.run)]
    if not answers:
        raise TrailError(f"{path} tells nothing of run {account.run}")
    sites = {_check_asked(path, line, account) for line in answers}
    if len(sites) != 1:
        raise TrailError(f"{path} answers what was asked of {' and of '.join(sorted(sites))}")
    (site,) = sites
    left: dict[str, list[Arrived]] = defaultdict(list)
    for line in answers:
        if line["event"] == "released":
            left[line["id"]].append(_released(path, line))
    accepted = [each for each in account.accepted if account.asked[each].site == site]
    for each in accepted:
        if not left[each]:
            raise TrailError(
                f"the reply to {each} of {site} was accepted, and {path} does not tell that one "
                "left",
                remedy="If the trail was copied earlier, ask the site for it as it is now.",
            )
        if not all(arrived in left[each] for arrived in account.accepted[each]):
            raise TrailError(
                f"the reply to {each} of {site} was accepted with another content than {path} "
                "tells of"
            )
    answered = {line["id"] for line in answers}
    return Agreement(site=site, answered=len(answered), accepted=len(accepted))


def _of_run(line: Mapping[str, Any], run: str) -> bool:
    return line.get("event") in _ANSWERS and str(line.get("run")) == run


def _check_asked(path: Path, line: Mapping[str, Any], account: Account) -> str:
    """The site that was asked for what it answered."""
    asked = account.asked.get(str(line.get("id")))
    if asked is None:
        raise TrailError(
            f"{path}: the site was asked for {line.get('id')}, and the server's trail does not "
            "tell that it was"
        )
    told = line.get("type"), line.get("round", asked.round)
    if told != (asked.type, asked.round):
        raise TrailError(
            f"{path}: {line['id']} was {told[0]} of round {told[1]} there, and is {asked.type} "
            f"of round {asked.round} in the server's trail"
        )
    return asked.site


def _released(path: Path, line: Mapping[str, Any]) -> Arrived:
    try:
        metrics = metrics_digest(line["metrics"])
        return Arrived(blake3=line["blake3"], bytes=line["bytes"], metrics=metrics)
    except KeyError as missing:
        raise TrailError(f"{path}: what is told of {line['id']} lacks {missing}") from missing

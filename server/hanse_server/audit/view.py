"""What `hanse server audit` prints: the lines, and what they were held against."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hanse.errors import TrailError
from hanse.plain import plain
from hanse.trail import last_digest, trail_lines
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hanse_server.audit.account import SENSELESS
from hanse_server.audit.compare import compare
from hanse_server.audit.verify import verify_trail
from hanse_server.terms import REASON_LENGTH
from hanse_server.workspace import audit_path, read_run


def audit_result(
    workspace: Path, *, site: str | None, number: int | None, verify: bool, against: Iterable[Path]
) -> dict[str, Any]:
    """The trail of a run, line by line, oldest first.

    Args:
        site: of which alone it is to tell; None for all.
        number: of the round of which alone it is to tell; None for all.
        verify: whether to hold it against the rest of the workspace.
        against: sites' trails to hold it against too.

    Raises:
        TrailError: if a line is damaged; with ``verify``, if anything does not agree.
        WorkspaceError: if ``workspace`` is none.
    """
    result: dict[str, Any] = {"run": str(read_run(workspace)["run_id"])}
    if verify:
        found, account = verify_trail(workspace)
        result["verified"] = asdict(found)
        result["agreed"] = [asdict(compare(path, account)) for path in against]
    path = audit_path(workspace)
    lines = trail_lines(path, TrailError)
    try:
        result["lines"] = [line for line in lines if _tells_of(line, site, number)]
    except SENSELESS as senseless:
        raise TrailError(f"{path}: a line is not what a server writes") from senseless
    return result | {"last": last_digest(path)}


def _tells_of(line: Mapping[str, Any], site: str | None, number: int | None) -> bool:
    if number is not None and line.get("round") != str(number):
        return False
    if site is None or line.get("site") == site:
        return True
    in_round = {*line.get("folded", {}).values(), *line.get("judged", {}).values()}
    return site in in_round or site in line.get("sites", {})


def audit_view(result: Mapping[str, Any]) -> RenderableType:
    """The trail, and what was verified, for people."""
    table = Table("when", "event", "site", "type", "round", "bytes", "what")
    for line in result["lines"]:
        table.add_row(*map(_plain, _row(line)))
    parts: list[RenderableType] = [table if result["lines"] else Text("nothing is told")]
    if "verified" in result:
        parts += _verified(result["verified"], result["agreed"])
    return Group(*parts)


def _row(line: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return (
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"])),
            line["event"].replace("_", " "),
            *(str(line.get(key, "")) for key in ("site", "type", "round", "bytes")),
            _what(line),
        )
    except SENSELESS as senseless:
        raise TrailError(
            f"a line of the trail, {line.get('event')}, cannot be shown"
        ) from senseless


def _plain(text: str) -> Text:
    """A text that may be a site's: as it is, with nothing that a terminal would act on."""
    return Text(plain(text, REASON_LENGTH))


def _what(line: Mapping[str, Any]) -> str:
    match line["event"]:
        case "started":
            return f"after round {line['after']}, hanse {line['versions'].get('hanse', '?')}"
        case "joined":
            return f"certificate {line['fingerprint'][:16]}, hanse {line['hanse']}"
        case "kept":
            folded, judged = len(line["folded"]), len(line["judged"])
            return f"{line['outcome']}: {folded} folded, {judged} judged, {line['model'][:16]}"
        case "settled":
            return f"{sum(map(len, line['sites'].values()))} replies"
    return str(line.get("reason") or line.get("label") or line.get("digest", "")[:16])


def _verified(found: Mapping[str, Any], agreed: Iterable[Mapping[str, Any]]) -> Iterable[Text]:
    yield Text(
        f"verified: {found['lines']} lines, each follows from the one before it; {found['rounds']} "
        f"rounds as history.jsonl has them, {found['folded']} replies folded, each accepted, and "
        f"once; the models are those told of in {', '.join(found['models']) or 'no file'}"
    )
    if found["again"]:
        again = ", ".join(map(str, found["again"]))
        yield Text(f"run again after a crash: round {again}")
    for each in agreed:
        yield Text(
            f"{each['site']}: its own trail tells of {each['answered']} answers; of these the "
            f"server accepted {each['accepted']} results, with the same digests"
        )
    yield Text(f"digest of the last line, to note elsewhere:\n{found['digest']}")

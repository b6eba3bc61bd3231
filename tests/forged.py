"""A trail as somebody would forge it who can write its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hanse.trail import GENESIS, digest_of

Line = dict[str, Any]


def lines_of(path: Path) -> list[Line]:
    """The lines of a trail, whatever they are."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def chain_anew(path: Path, lines: Iterable[Line]) -> None:
    """Write lines in place of a trail, each following from the one before it."""
    texts, last = [], GENESIS
    for line in lines:
        texts.append(json.dumps(line | {"previous": last}, sort_keys=True))
        last = digest_of(texts[-1])
    path.write_text("".join(f"{text}\n" for text in texts))


def forge(path: Path, change: Callable[[list[Line]], None]) -> None:
    """Change the lines of a trail, and make its chain anew."""
    lines = lines_of(path)
    change(lines)
    chain_anew(path, lines)


def told(lines: Iterable[Line], event: str) -> list[Line]:
    """The lines of one event."""
    return [line for line in lines if line["event"] == event]

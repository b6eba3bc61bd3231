"""Put what `make bench` has measured into the page of figures: ``tests/benchmarks/README.md``.

Each benchmark that has written ``build/bench/<name>.json`` gets its part of the page anew; what was
not run stays as it is, with its own date and machine.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
PAGE = FOLDER / "README.md"
RESULTS = FOLDER.parents[1] / "build" / "bench"


def refreshed(page: str, name: str, docstring: str, told: dict[str, Any]) -> str:
    """The page with the part of one benchmark written anew, or added at its end."""
    part = f"<!-- {name} -->\n{_part(name, docstring, told)}<!-- /{name} -->\n"
    there = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->\n", re.DOTALL)
    if there.search(page):
        return there.sub(lambda _: part, page)
    return f"{page.rstrip()}\n\n{part}"


def _part(name: str, docstring: str, told: dict[str, Any]) -> str:
    title, _, text = docstring.partition("\n")
    machine = told["machine"]
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    commit, minutes = told["commit"], told["minutes"]
    run = (
        f"`make bench BENCH={name}` at {commit}, {told['date']}, {minutes:g} minutes. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, "
        f"{machine['kernel']}, Python {machine['python']}{gpu}. Load average before "
        f"{told['load_before']:g}, after {told['load_after']:g}."
    )
    paragraphs = [f"## {name}", title, text.strip().replace("``", "`"), run]
    paragraphs += [_table(told["rows"]), *told["notes"]]
    return "\n\n".join(each for each in paragraphs if each) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(rows[0])
    lines = [
        [column.replace("_", " ") for column in columns],
        ["---" if isinstance(rows[0][column], str) else "---:" for column in columns],
        *([_shown(row[column]) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def main() -> None:
    """Refresh the page from all results that there are."""
    page = PAGE.read_text(encoding="utf-8")
    for path in sorted(RESULTS.glob("*.json")):
        source = (FOLDER / f"{path.stem}.py").read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
        page = refreshed(page, path.stem, docstring, json.loads(path.read_text(encoding="utf-8")))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

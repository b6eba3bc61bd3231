"""Run one benchmark: print its table, and write it to ``build/bench/<name>.json``.

A benchmark is a module of this folder with ``rows() -> list[dict[str, Any]]``; the first line of
its docstring is its title. One that needs data takes the folder of it: ``rows(data)``; what else it
takes has defaults, by which a test runs a small version. What is to be said beside the table,
``notes() -> list[str]`` gives, where there is something. ``make bench BENCH=name`` runs one, with
``DATA=folder`` where it needs that; ``make bench`` lists them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.figures.machine import commit, machine
from tests.benchmarks.figures.machine import load as load_average

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "build" / "bench"

Rows = Sequence[dict[str, Any]]


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, or 2 for a benchmark that there is not, or that lacks its data."""
    console = Console()
    names = benchmarks(FOLDER)
    if not arguments or arguments[0] not in names:
        for name in names:
            console.print(f"{name}: {title(load(FOLDER, name))}", highlight=False)
        if arguments:
            console.print(f"there is no benchmark called {arguments[0]}")
        return 2 if arguments else 0
    module, folders = load(FOLDER, arguments[0]), [Path(each) for each in arguments[1:]]
    if len(folders) != len(_needed(module)):
        console.print(f"{arguments[0]} needs a folder of data: DATA=folder")
        return 2
    started, loaded = datetime.now(UTC), load_average()
    rows = module.rows(*folders)
    console.print(table(title(module), rows))
    told = {
        "title": title(module),
        "date": f"{started:%Y-%m-%d %H:%M} UTC",
        "minutes": round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        "commit": commit(),
        "machine": machine(),
        "load_before": loaded,
        "load_after": load_average(),
        "notes": module.notes() if hasattr(module, "notes") else [],
    }
    for note in told["notes"]:
        console.print(note, highlight=False)
    console.print(f"written to {write(RESULTS, arguments[0], rows, told)}", highlight=False)
    return 0


def benchmarks(folder: Path) -> list[str]:
    """The names of the benchmarks in ``folder``."""
    return sorted(path.stem for path in folder.glob("*.py") if path.name != Path(__file__).name)


def load(folder: Path, name: str) -> ModuleType:
    """The module of a benchmark."""
    spec = spec_from_file_location(f"hanse_benchmark_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _needed(module: ModuleType) -> list[Parameter]:
    parameters = signature(module.rows).parameters.values()
    return [each for each in parameters if each.default is Parameter.empty]


def title(module: ModuleType) -> str:
    """The first line of a benchmark's docstring."""
    return (module.__doc__ or "").partition("\n")[0]


def table(title: str, rows: Rows) -> Table:
    """The rows as a table; every row has the columns of the first."""
    made = Table(title=title)
    for column, value in rows[0].items():
        words = isinstance(value, str)
        made.add_column(
            column.replace("_", " "), justify="left" if words else "right", no_wrap=words
        )
    for row in rows:
        made.add_row(*(_shown(row[column]) for column in rows[0]))
    return made


def write(folder: Path, name: str, rows: Rows, told: dict[str, Any]) -> Path:
    """Write the rows as JSON, in full precision, and what is ``told`` of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(told | {"rows": list(rows)}, indent=2) + "\n", encoding="utf-8")
    return path


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

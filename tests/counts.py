"""A pytest plugin: how many tests of each folder of ``tests/`` passed, at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

OUTCOMES = ("passed", "failed", "error", "skipped")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Print one line for each folder: unit, contract, privacy, and so on; below all else."""
    yield
    counts: dict[str, Counter[str]] = {}
    for outcome in OUTCOMES:
        for report in terminalreporter.getreports(outcome):
            counts.setdefault(_folder(report.nodeid), Counter())[outcome] += 1
    terminalreporter.section("tests by folder")
    for folder, outcomes in sorted(counts.items()):
        told = ", ".join(f"{outcomes[name]} {name}" for name in OUTCOMES if outcomes[name])
        terminalreporter.line(f"{folder}: {told}")


def _folder(nodeid: str) -> str:
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 else parts[0]

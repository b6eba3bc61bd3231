"""The page of figures: what it takes over, what it keeps, and that it names no stranger."""

from __future__ import annotations

import re
from typing import Any

from tests.benchmarks import run
from tests.benchmarks.figures.machine import machine
from tests.benchmarks.figures.page import PAGE, refreshed

TOLD: dict[str, Any] = {
    "date": "2026-11-25 12:00 UTC",
    "minutes": 2.5,
    "commit": "0123abc",
    "machine": machine(),
    "load_before": 0.5,
    "load_after": 1.5,
    "notes": ["One is left out."],
    "rows": [{"who": "a", "seconds": 0.123456, "ratio": None}],
}


def test_a_part_is_written_anew_and_the_others_stay() -> None:
    page = refreshed("# Figures\n", "speed", "How fast it is.\n\nAs ``rows``.", TOLD)
    page = refreshed(page, "size", "How large it is.", TOLD)
    slower = TOLD | {"rows": [{"who": "a", "seconds": 20.0, "ratio": 2}]}

    again = refreshed(page, "speed", "How fast it is.", slower)

    assert "| a | 0.123 | - |" in page
    assert "0123abc" in page
    assert "As `rows`." in page
    assert "One is left out." in page
    assert again.count("## speed") == again.count("## size") == 1
    assert "| a | 20 | 2 |" in again
    assert again.index("## speed") < again.index("## size")


def test_the_page_has_parts_of_benchmarks_only() -> None:
    page = PAGE.read_text(encoding="utf-8")

    begun = re.findall(r"<!-- ([a-z_]+) -->", page)

    assert begun
    assert begun == re.findall(r"<!-- /([a-z_]+) -->", page)
    assert set(begun) <= set(run.benchmarks(run.FOLDER))

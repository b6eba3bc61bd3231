"""kill -9 at every line of three rounds: what was left out of an update is added once.

``HANSE_KILL_AT_EVERY_LINE=1`` tries every line; else it is one in 200, from a random one on.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hospitals import environment

EVERY = 1 if os.environ.get("HANSE_KILL_AT_EVERY_LINE") else 200


def kill(*arguments: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults.leaving_out", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=environment(),
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(14400 if EVERY == 1 else 300)
def test_killed_at_any_line_twice_the_site_answers_as_if_nothing_had_been() -> None:
    offset = random.SystemRandom().randrange(EVERY)
    found = kill("--every", str(EVERY), "--offset", str(offset))
    assert found["failures"] == [], f"with offset {offset}"
    assert found["lines"] > 1000
    assert found["points"] >= found["lines"] // EVERY


@pytest.mark.slow
def test_a_planted_fault_is_found() -> None:
    assert kill("--plant", "--every", "40")["failures"]

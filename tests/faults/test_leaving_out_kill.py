"""kill -9 at every line of three rounds: what was left out of an update is added once.

``HANSE_KILL_AT_EVERY_LINE=1`` tries every line; else it is one in 200, from a random one on.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.by_module import found_by

EVERY = 1 if os.environ.get("HANSE_KILL_AT_EVERY_LINE") else 200


@pytest.mark.slow
@pytest.mark.timeout(14400 if EVERY == 1 else 300)
def test_killed_at_any_line_twice_the_site_answers_as_if_nothing_had_been() -> None:
    offset = random.SystemRandom().randrange(EVERY)
    found = found_by("leaving_out", "--every", str(EVERY), "--offset", str(offset))
    assert found["failures"] == [], f"with offset {offset}"
    assert found["lines"] > 1000
    assert found["points"] >= found["lines"] // EVERY


@pytest.mark.slow
def test_a_planted_fault_is_found() -> None:
    assert found_by("leaving_out", "--plant", "--every", "40")["failures"]

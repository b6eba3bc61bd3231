"""kill -9 at every line from reservation to release: the ledger never counts too little.

``HANSE_KILL_AT_EVERY_LINE=1`` tries every line; else it is one in sixty, from a random one on.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.by_module import found_by

EVERY = 1 if os.environ.get("HANSE_KILL_AT_EVERY_LINE") else 60


@pytest.mark.slow
@pytest.mark.timeout(7200 if EVERY == 1 else 300)
def test_killed_at_any_line_twice_the_ledger_never_counts_too_little() -> None:
    offset = random.SystemRandom().randrange(EVERY)
    found = found_by("killing", "--every", str(EVERY), "--offset", str(offset))
    assert found["failures"] == [], f"with offset {offset}"
    assert found["lines"] > 1000
    assert found["points"] >= found["lines"] // EVERY
    assert found["deaths"] > 1.5 * found["points"], "the second client is killed too, mostly"


@pytest.mark.slow
def test_each_planted_fault_is_found() -> None:
    found = found_by("killing", "--plant")
    expected = {
        "charged_after_training": "0 charges",
        "never_released": "a reply left before its charge was released",
        "reservations_count_for_nothing": "a recount from the audit trail differ",
        "released_charges_taken_up": "trained under a charge that had been released",
        "untold": "the audit trail tells of",
    }
    assert found.keys() == expected.keys()
    for fault, told in expected.items():
        assert told in str(found[fault]), fault

"""Each classic mistake of private training, planted, is caught by a test of this suite.

A guard passes on the code as it is, and fails with the bug in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.privacy import (
    bugs_of_accounting,
    bugs_of_audit,
    bugs_of_checks,
    bugs_of_encoding,
    bugs_of_ledger,
    bugs_of_noise,
    bugs_of_release,
    bugs_of_sampling,
    bugs_of_steps,
)
from tests.privacy.planting import CAUGHT, Bug, Ground

TABLES = (
    bugs_of_noise,
    bugs_of_sampling,
    bugs_of_steps,
    bugs_of_checks,
    bugs_of_accounting,
    bugs_of_ledger,
    bugs_of_release,
    bugs_of_encoding,
    bugs_of_audit,
)
BUGS = [bug for table in TABLES for bug in table.BUGS]


@pytest.fixture(scope="module")
def sound() -> set[object]:
    """Guards that have passed without a bug."""
    return set()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug, sound: set[object], tmp_path: Path) -> None:
    for name in ("sound", "planted"):
        (tmp_path / name).mkdir()
    if bug.guard not in sound:
        with pytest.MonkeyPatch.context() as patch:
            bug.guard(Ground(patch=patch, folder=tmp_path / "sound"))
        sound.add(bug.guard)
    with pytest.MonkeyPatch.context() as patch:
        ground = Ground(patch=patch, folder=tmp_path / "planted")
        bug.plant(ground)
        with pytest.raises(CAUGHT):
            bug.guard(ground)


def test_each_bug_has_a_name_of_its_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)

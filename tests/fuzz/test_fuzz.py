"""A few thousand inputs over all targets; `make fuzz` runs a million, guided by coverage.

The seed is printed with a failure; HANSE_FUZZ_SEED gives it again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hanse.errors import DataError, WireError

from tests.fuzz.plain import fuzz
from tests.fuzz.target import Target
from tests.fuzz.targets import SHARES, TARGETS
from tests.fuzz.watch import MEMORY, Watch, bounded_memory

SEED = int(os.environ.get("HANSE_FUZZ_SEED") or secrets.randbelow(2**31))
INPUTS = 2500

pytestmark = [
    # What numpy, Pillow and pandas say of damaged files is for people.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_refusals_comes_of_damaged_inputs(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    inputs = len(target.seeds) + 20 + int(INPUTS * SHARES[name] / sum(SHARES.values()))
    print(f"HANSE_FUZZ_SEED={SEED}")

    with closing(target), bounded_memory():
        watch = fuzz(target, inputs, Random(SEED))

    assert watch.inputs == inputs
    assert watch.findings == []


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_seed_is_taken(name: str, tmp_path: Path) -> None:
    """Else the fuzzer would see nothing but the first check."""
    with closing(TARGETS[name](tmp_path)) as target:
        if name == "instructed-jobs":  # that site has no data of the shipped tasks
            with pytest.raises(DataError):
                target.run(target.seeds[0])
        else:
            target.run(target.seeds[0])


# --- the watch itself -----------------------------------------------------------------------------


def watched(run: Callable[[bytes], object]) -> Watch:
    watch = Watch(Target(run=run, seeds=[b""]))
    with bounded_memory():
        watch.run(b"x")
        watch.run(b"y")
    return watch


def test_a_refusal_is_no_finding() -> None:
    def run(data: bytes) -> None:
        raise WireError("no")

    watch = watched(run)
    assert (watch.inputs, watch.refused, watch.findings) == (2, 2, [])


def test_any_other_error_is_a_finding_once_a_place() -> None:
    nothing: dict[bytes, bytes] = {}
    watch = watched(nothing.__getitem__)
    assert [(each.kind, each.data) for each in watch.findings] == [("KeyError", b"x")]


def test_memory_that_is_only_declared_is_a_finding() -> None:
    watch = watched(lambda data: bytearray(2 * MEMORY))
    assert [each.kind for each in watch.findings] == ["memory"]


def test_long_work_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.watch.SECONDS", 0.01)
    watch = watched(lambda data: sum(range(3_000_000)))
    assert [each.kind for each in watch.findings] == ["slow"]

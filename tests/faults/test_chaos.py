"""A few of the seeds of ``make chaos``, and defects that it has to find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.chaos import soak
from tests.faults.chaos.faults import KINDS, Fault
from tests.faults.chaos.gauges import Course
from tests.faults.chaos.grounds import Setting
from tests.faults.chaos.run import SERVER
from tests.faults.chaos.series import SETTINGS, Plan, Series, planned

PLAIN, PRIVATE = SETTINGS[:2]
SEEDS = (2, 5, 7)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Series]:
    with Series(tmp_path_factory.mktemp("chaos")) as series:
        yield series


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_in_chaos_ends_as_it_should(series: Series, seed: int) -> None:
    outcome = series.run(seed)
    assert outcome.why == "", str(outcome)
    assert outcome.injected, "nothing befell it"


def test_a_seed_is_always_the_same_plan() -> None:
    plans = [planned(seed, mounts=True) for seed in range(200)]
    assert plans == [planned(seed, mounts=True) for seed in range(200)]
    drawn = {fault.kind for plan in plans for fault in plan.faults}
    expected = set(KINDS)
    if not any(plan.spaces for plan in plans):
        expected -= {"partitioned", "lossy", "slow_network"}
    assert drawn == expected


def at(round_: int, kind: str, victim: str, amount: float = 0.5) -> Fault:
    return Fault(kind=kind, victim=victim, round=round_, wait=0.0, seconds=0.1, amount=amount)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defect", "setting", "faults", "told"),
    [
        (
            "ids_are_random",
            PRIVATE,
            [at(number, "killed_while_checkpointing", SERVER) for number in (3, 9)],
            "came as 2 messages",
        ),
        (
            "checkpoints_are_not_synced",
            PLAIN,
            [at(number, "power_cut", SERVER, number / 100) for number in range(30, 36)],
            "server ended by itself with 14",
        ),
        (
            "charges_are_not_written",
            PRIVATE,
            [at(3, "killed", "site-1")],
            "cost 1 charges, 0 are counted",
        ),
        (
            "strategy_is_not_restored",
            PLAIN,
            [at(20, "killed", SERVER)],
            "not that of the uninterrupted run",
        ),
    ],
)
def test_a_planted_defect_is_found(
    tmp_path: Path, defect: str, setting: Setting, faults: list[Fault], told: str
) -> None:
    plan = Plan(seed=1, setting=setting, faults=tuple(faults), small=(), spaces=False)
    with Series(tmp_path, defect=defect) as series:
        assert told in series.suffer(plan).why


def course(**changes: Any) -> Course:
    settings: dict[str, Any] = {
        "name": SERVER,
        "pid": 1,
        "samples": 100,
        "rounds": 500,
        "first": 1000,
        "last": 1000,
        "slope": 0.0,
        "resident_slope": 0.0,
        "descriptors": (20, 30),
        "threads": (10, 14),
    }
    return Course(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slope": soak.MOST_SLOPE + 1}, "memory"),
        ({"descriptors": (20, 21 + soak.MOST_MORE)}, "descriptors"),
        ({"threads": (10, 11 + soak.MOST_THREADS_MORE)}, "threads"),
    ],
)
def test_the_soak_tells_what_grows(changes: dict[str, Any], told: str) -> None:
    assert soak.grown([course()], [0.1] * 10) == []
    [found] = soak.grown([course(), course(**changes)], [0.1] * 10)
    assert told in found


def test_the_soak_tells_of_rounds_that_get_slower() -> None:
    [found] = soak.grown([], [0.1] * 9 + [0.2])
    assert "rounds" in found

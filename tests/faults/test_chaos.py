"""A few of the seeds of ``make chaos``, and defects that it has to find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.chaos import soak
from tests.faults.chaos.fault import Fault
from tests.faults.chaos.gauges import Course
from tests.faults.chaos.grounds import Setting
from tests.faults.chaos.kinds import KINDS
from tests.faults.chaos.process import SERVER
from tests.faults.chaos.series import SETTINGS, Plan, Series, planned

PLAIN, PRIVATE = SETTINGS[:2]
HUGE = Setting(name="huge", sites=3, rounds=2, private=False, width=150_000)
SEEDS = (5, 7)


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


CUTS = [at(number, "cut_in_transfer", f"site-{number}", 0.801) for number in (1, 2)]

# What of a transfer was read when it is cut is a matter of microseconds: one cut may show nothing.
MANY_CUTS = [
    at(number, "cut_in_transfer", f"site-{site}", 0.801) for number in (1, 2) for site in (1, 2, 3)
]


@pytest.mark.slow
def test_an_update_of_megabytes_goes_on_where_it_was_cut_off(series: Series) -> None:
    outcome = series.suffer(Plan(seed=0, setting=HUGE, faults=tuple(CUTS), small=(), spaces=False))
    assert outcome.why == "", str(outcome)
    assert len(outcome.injected) == len(CUTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defect", "setting", "faults", "told"),
    [
        (
            "checkpoints_are_not_synced",
            PLAIN,
            [at(5, "power_cut", SERVER, 0.4), at(25, "power_cut", SERVER, 0.6)],
            "server ended by itself with 14",
        ),
        (
            "charges_are_not_written",
            PRIVATE,
            [at(3, "killed", "site-1")],
            "cost 1 charges, 0 are counted",
        ),
        ("transfers_begin_anew", HUGE, MANY_CUTS, "cuts at most"),
    ],
)
def test_a_planted_defect_is_found(
    series: Series, defect: str, setting: Setting, faults: list[Fault], told: str
) -> None:
    plan = Plan(seed=1, setting=setting, faults=tuple(faults), small=(), spaces=False)
    assert told in series.suffer(plan, defect=defect).why


def course(**changes: Any) -> Course:
    settings: dict[str, Any] = {
        "name": SERVER,
        "pid": 1,
        "own": True,
        "samples": 100,
        "rounds": 500,
        "connections": 0,
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
        ({"slope": soak.MOST_SLOPE + 1, "rounds": 1800}, "memory"),
        ({"slope": soak.MOST_SLOPE + 1, "rounds": 5100, "connections": 1000}, "memory"),
        ({"descriptors": (20, 21 + soak.MOST_MORE)}, "descriptors"),
        ({"threads": (10, 11 + soak.MOST_THREADS_MORE)}, "threads"),
    ],
)
def test_the_soak_tells_what_grows(changes: dict[str, Any], told: str) -> None:
    breath, fork = course(slope=200.0, rounds=400), course(slope=200.0, rounds=4000, own=False)
    filling = course(slope=200.0, rounds=800, connections=30)
    assert soak.grown([course(), breath, fork, filling], [0.1] * 10) == []
    [found] = soak.grown([course(), course(**changes)], [0.1] * 10)
    assert told in found


def test_the_soak_tells_of_rounds_that_get_slower() -> None:
    [found] = soak.grown([], [0.1] * 9 + [0.2])
    assert "rounds" in found

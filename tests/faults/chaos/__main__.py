"""``make chaos``: seeded runs, a line each, and the counts last.

python -m tests.faults.chaos --runs 100 --seed 1
python -m tests.faults.chaos --plant
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from tests.faults.chaos.defects import DEFECTS
from tests.faults.chaos.series import Outcome, Series, counts

MOST_TRIES = 25


def main() -> None:
    """Do what was asked for, and fail if a run failed, or a defect was not found."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first; the next has one more")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if left out")
    parser.add_argument("--plant", nargs="*", metavar="DEFECT", help="which runs find a defect?")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="hanse-chaos-"))
    if asked.plant is not None:
        sys.exit(plant(asked.plant or list(DEFECTS), asked.seed, folder))
    seeds = range(asked.seed, asked.seed + asked.runs)
    sys.exit(1 if chaos(seeds, asked.jobs, folder) else 0)


def chaos(seeds: Iterable[int], jobs: int, folder: Path) -> int:
    """Run seeds, some at the same time; how many failed."""
    started, outcomes = time.monotonic(), []
    with ExitStack() as opened:
        lanes: SimpleQueue[Series] = SimpleQueue()
        for lane in range(jobs):
            series = opened.enter_context(Series(folder / f"lane-{lane}", lane=lane))
            lanes.put(series)

        def run(seed: int) -> Outcome:
            lane = lanes.get()
            try:
                return lane.run(seed)
            finally:
                lanes.put(lane)

        with ThreadPoolExecutor(jobs) as pool:
            for outcome in pool.map(run, seeds):
                print(outcome, flush=True)
                outcomes.append(outcome)
        mounts = series.mounts
    print(f"{counts(outcomes, mounts=mounts)}; {time.monotonic() - started:.0f} s", flush=True)
    return sum(bool(outcome.why) for outcome in outcomes)


def plant(defects: list[str], first: int, folder: Path) -> int:
    """Which seed finds each defect, and by what; how many none finds."""
    missed = 0
    with Series(folder, longest=60.0) as series:
        for defect in defects:
            for tries in range(1, MOST_TRIES + 1):
                outcome = series.run(first + tries - 1, defect=defect)
                if outcome.why:
                    break
            missed += not outcome.why
            told = outcome.why.splitlines()[0] if outcome.why else "NOT FOUND"
            suffered = " ".join(map(str, outcome.injected))
            print(f"{defect}: {told} (run {tries}: {suffered})", flush=True)
    return missed


if __name__ == "__main__":
    main()

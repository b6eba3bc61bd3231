"""``make chaos``: seeded runs, a line each, and the counts last.

python -m tests.faults.chaos --runs 100 --seed 1
python -m tests.faults.chaos --plant
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.chaos.defects import DEFECTS
from tests.faults.chaos.series import Series

MOST_TRIES = 25


def main() -> None:
    """Run as many as were asked for, and fail if one failed."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first; the next has one more")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if left out")
    parser.add_argument("--plant", nargs="*", metavar="DEFECT", help="which runs find a defect?")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="hanse-chaos-"))
    if asked.plant is not None:
        sys.exit(plant(asked.plant or list(DEFECTS), asked.seed, folder))
    with Series(folder) as series:
        for seed in range(asked.seed, asked.seed + asked.runs):
            print(series.run(seed), flush=True)
        print(series.counts(), flush=True)
    sys.exit(1 if series.failed else 0)


def plant(defects: list[str], first: int, folder: Path) -> int:
    """Which seed finds each defect, and by what; how many none finds."""
    missed = 0
    for defect in defects:
        with Series(folder / defect, defect=defect, longest=45.0) as series:
            for seed in range(first, first + MOST_TRIES):
                outcome = series.run(seed)
                if outcome.why:
                    break
        missed += not outcome.why
        told = outcome.why.splitlines()[0] if outcome.why else "NOT FOUND"
        tries = seed - first + 1
        print(f"{defect}: {told} (run {tries}: {' '.join(map(str, outcome.injected))})", flush=True)
    return missed


if __name__ == "__main__":
    main()

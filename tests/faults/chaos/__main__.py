"""``make chaos``: seeded runs, each a line; what was found last, with the counts.

    python -m tests.faults.chaos --runs 100 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.chaos.series import Series


def main() -> None:
    """Run as many as were asked for, and fail if one failed."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the next has one more")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if left out")
    parser.add_argument("--plant", default="", help="a defect, planted in all processes")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="hanse-chaos-"))
    with Series(folder, defect=asked.plant) as series:
        for seed in range(asked.seed, asked.seed + asked.runs):
            print(series.run(seed), flush=True)
        print(series.counts(), flush=True)
    sys.exit(1 if series.failed else 0)


if __name__ == "__main__":
    main()

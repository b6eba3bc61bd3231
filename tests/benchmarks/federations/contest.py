"""Run contestants on the same case, in turns, and compare them.

By hand: ``python -m tests.benchmarks.federations.contest floor Hanse -- --sites 2 --megabytes 100
--rounds 3`` runs each of these once and prints what they tell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.federations.case import Case, Measured, asked
from tests.benchmarks.federations.processes import end_with_parent

ROOT = Path(__file__).parents[3]
PEERS = ROOT / ".venv-peers"
LONGEST_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A module that runs a case, and the environment that it runs in.

    Attributes:
        environment: of a peer, under ``.venv-peers``; empty for this one.
        package: whose version is told; empty for none.
        most_rounds: that count in one federation, where a round takes seconds whatever its size.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    environment: str = ""
    package: str = ""
    most_rounds: int = 1000

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        if not self.environment:
            return Path(sys.executable)
        return PEERS / self.environment / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether it can run here."""
        return self.python.exists()

    @property
    def version(self) -> str:
        """Of its package; empty if there is none."""
        if not self.package:
            return ""
        if not self.environment:
            return version(self.package)
        ask = f"from importlib.metadata import version; print(version({self.package!r}))"
        command = [str(self.python), "-c", ask]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def run(self, case: Case) -> Measured:
        """Run the case in a process of its own.

        Raises:
            RuntimeError: with the end of its log, if it fails.
        """
        case = replace(case, rounds=min(case.rounds, self.most_rounds))
        command = [str(self.python), "-m", self.module, *self.arguments, *case.arguments]
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        with tempfile.TemporaryFile("w+") as log:
            ended = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=surroundings,
                timeout=LONGEST_SECONDS,
                preexec_fn=end_with_parent,
                check=False,
            )
            if ended.returncode == 0:
                return Measured.told(ended.stdout)
            log.seek(0)
            raise RuntimeError(f"{self.name} failed on {case}: {log.read()[-4000:]}")


_HERE = "tests.benchmarks.federations"

FLOOR = Contestant(name="floor", module=f"{_HERE}.floor", package="grpcio")
HANSE = Contestant(
    name="Hanse", module=f"{_HERE}.hanse_deployed", arguments=("echo",), package="hanse"
)
GATES = Contestant(
    name="Hanse with gates", module=f"{_HERE}.hanse_deployed", arguments=("gates",), package="hanse"
)

FLOWER = Contestant(
    name="Flower",
    module="tests.benchmarks.peers.flower_deployed",
    environment="flower",
    package="flwr",
    most_rounds=4,
)
NVFLARE = Contestant(
    name="NVFlare",
    module="tests.benchmarks.peers.nvflare_deployed",
    arguments=("defaults",),
    environment="nvflare",
    package="nvflare",
    most_rounds=4,
)
NVFLARE_SHORT = replace(NVFLARE, name="NVFlare, short waits", arguments=("short",), most_rounds=20)
ALL = (FLOOR, HANSE, GATES, FLOWER, NVFLARE, NVFLARE_SHORT)


@dataclass
class Result:
    """All that a contestant told of a case, over several federations."""

    contestant: Contestant
    measured: list[Measured] = field(default_factory=list)

    def run(self, case: Case) -> None:
        """Another federation of it. Of a peer that fails it is said so, and the rest goes on."""
        try:
            told = self.contestant.run(case)
            shown = " ".join(f"{each:.3g}" for each in told.seconds)
            print(f"{self.contestant.name}, {case}: {shown} s", file=sys.stderr)
            self.measured.append(told)
        except (RuntimeError, subprocess.TimeoutExpired) as failure:
            if not self.contestant.environment:
                raise
            print(failure, file=sys.stderr)

    @property
    def seconds(self) -> float:
        """Median of a round but the first."""
        return median(each for run in self.measured for each in run.seconds[1:])

    @property
    def whole_seconds(self) -> float:
        """Median from a round's start to the next one's, but the first."""
        found = [each for run in self.measured for each in run.between[1:]]
        return median(found) if found else self.seconds

    @property
    def first_seconds(self) -> float:
        """Median of the first round."""
        return median(run.seconds[0] for run in self.measured)

    def peak_models(self, case: Case) -> float:
        """The server's peak memory above its rest, in models; the median of the federations."""
        peaks = (run.peak_bytes - run.rest_bytes for run in self.measured)
        return median(peaks) / case.model_bytes


def compare(
    case: Case, contestants: Sequence[Contestant], *, repeats: int
) -> Iterator[dict[str, Any]]:
    """A row for each contestant that is installed and does not fail.

    Args:
        repeats: federations of each, in turns.
    """
    results = [Result(each) for each in contestants if each.installed]
    for _ in range(repeats):
        for result in results:
            result.run(case)
    by_name = {result.contestant.name: result for result in results if result.measured}
    for name, result in by_name.items():
        yield {
            "contestant": name,
            "version": result.contestant.version,
            "round_s": result.seconds,
            "whole_s": result.whole_seconds,
            "first_s": result.first_seconds,
            "peak_models": result.peak_models(case),
            **{
                f"over_{other.name}".lower(): result.seconds / by_name[other.name].seconds
                for other in (FLOOR, HANSE)
                if other.name in by_name
            },
        }


def absent(contestants: Sequence[Contestant]) -> list[str]:
    """A line for each contestant that is not installed."""
    return [
        f"{each.name} is left out: `make bench-peers` would install it."
        for each in contestants
        if not each.installed
    ]


def main(arguments: Sequence[str]) -> None:
    """Run the contestants of the command line once each."""
    end = arguments.index("--")
    names, case = arguments[:end], asked(arguments[end + 1 :])
    for row in compare(case, [each for each in ALL if each.name in names], repeats=1):
        print(row)


if __name__ == "__main__":
    main(sys.argv[1:])

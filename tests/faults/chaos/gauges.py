"""Memory, descriptors and threads of processes over their lives, and whether they grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

WARM_ROUNDS = 200
"""Until then memory grows without a leak: libraries load, caches fill."""

LEAST_SAMPLES = 20
LEAST_ROUNDS = 300


@dataclass(frozen=True)
class Sample:
    """A process at one moment.

    Attributes:
        connections: how many it had opened or accepted.
        memory: private memory in KiB, what is shared with the zygote left out.
        resident: all resident memory in KiB.
    """

    round: int
    connections: int
    memory: int
    resident: int
    descriptors: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Course:
    """What became of a process after its first rounds.

    Attributes:
        own: whether it is no fork: the private memory of a fork rises with every page shared with
            the zygote that it writes to, a leak or not.
        connections: how many it opened or accepted meanwhile.
        slope: of its private memory, in KiB per 100 rounds, by least squares.
    """

    name: str
    pid: int
    own: bool
    samples: int
    rounds: int
    connections: int
    first: int
    last: int
    slope: float
    resident_slope: float
    descriptors: tuple[int, int]
    threads: tuple[int, int]

    def row(self) -> str:
        """Its row of the table."""
        descriptors, threads = ("{}-{}".format(*each) for each in (self.descriptors, self.threads))
        return (
            f"{self.name:8} {self.pid:7} {self.samples:7} {self.rounds:6} "
            f"{self.connections:11} {self.first:8} {self.last:8} {self.slope:+9.1f} "
            f"{self.resident_slope:+9.1f} {descriptors:>11} {threads:>7}"
        )


HEADING = (
    f"{'process':8} {'pid':>7} {'samples':>7} {'rounds':>6} {'connections':>11} "
    f"{'first':>8} {'last':>8} {'slope':>9} {'resident':>9} {'descriptors':>11} {'threads':>7}"
)


class Gauges:
    """Samples of all lives, by process.

    Args:
        file: in which all of them are kept.
        own: names of the processes that are no forks.
    """

    def __init__(self, file: Path, own: Collection[str]) -> None:
        self._file = file
        self._own = own
        self._samples: dict[tuple[str, int], list[Sample]] = defaultdict(list)

    def look(self, name: str, pid: int, round_: int, connections: int) -> None:
        """Take a sample, if the process is still there."""
        try:
            sample = _sample(pid, round_, connections)
        except (FileNotFoundError, ProcessLookupError):
            return
        self._samples[name, pid].append(sample)
        with self._file.open("a") as file:
            file.write(",".join(map(str, (name, pid, *astuple(sample)))) + "\n")

    def courses(self) -> list[Course]:
        """Of the processes that lived long enough to tell."""
        found = []
        for (name, pid), samples in self._samples.items():
            warm = [each for each in samples if each.round >= samples[0].round + WARM_ROUNDS]
            enough = len(warm) >= LEAST_SAMPLES
            if enough and warm[-1].round - warm[0].round >= LEAST_ROUNDS:
                found.append(_course(name, pid, warm, own=name in self._own))
        return sorted(found, key=lambda each: (each.name != "server", each.name, each.pid))


def _course(name: str, pid: int, samples: Sequence[Sample], *, own: bool) -> Course:
    descriptors = [each.descriptors for each in samples]
    threads = [each.threads for each in samples]
    return Course(
        name=name,
        pid=pid,
        own=own,
        samples=len(samples),
        rounds=samples[-1].round - samples[0].round,
        connections=samples[-1].connections - samples[0].connections,
        first=samples[0].memory,
        last=samples[-1].memory,
        slope=_slope([(each.round, each.memory) for each in samples]),
        resident_slope=_slope([(each.round, each.resident) for each in samples]),
        descriptors=(min(descriptors), max(descriptors)),
        threads=(min(threads), max(threads)),
    )


def _slope(points: Sequence[tuple[int, int]]) -> float:
    """Of the line through the points, per 100 rounds."""
    rounds, values = np.array(points, dtype=float).T
    return float(np.polyfit(rounds, values, 1)[0] * 100)


def _sample(pid: int, round_: int, connections: int) -> Sample:
    process = Path(f"/proc/{pid}")
    told = {}
    for line in (process / "smaps_rollup").read_text().splitlines()[1:]:
        key, _, value = line.partition(":")
        told[key] = int(value.split()[0])
    return Sample(
        round=round_,
        connections=connections,
        memory=told["Private_Dirty"] + told["Private_Clean"],
        resident=told["Rss"],
        descriptors=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
    )

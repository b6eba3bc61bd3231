"""``make soak``: a long run with a fault every few seconds; nothing in it may grow.

    python -m tests.faults.chaos.soak --rounds 2000 --seed 1

Eight sites train privately, so that their ledgers grow by two rows a round. Three of them are
never killed, and the server seldom: of those it can be told whether their memory grows. They are
no forks, so that all of their memory is their own. Of the others the descriptors and threads are
judged, and their memory is told.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from hanse.errors import HanseError
from hanse_server.history import read_history

from tests.faults.chaos.fault import Fault
from tests.faults.chaos.gauges import HEADING, Course, Gauges
from tests.faults.chaos.grounds import Federation, Setting
from tests.faults.chaos.process import SERVER, FailedRunError
from tests.faults.chaos.run import Run
from tests.faults.chaos.suffering import Suffering
from tests.faults.chaos.verdict import judge
from tests.faults.chaos.zygote import Zygote

SITES = 8
SPARED = ("site-1", "site-2", "site-3")
OF_SITES = ("killed", "stopped", "told_to_stop", "died_at_a_write")
OF_LINKS = ("cut", "cut_in_transfer", "silent", "delayed", "trickling", "corrupted")
BETWEEN_SECONDS = (2.0, 5.0)
SAMPLE_SECONDS = 2.0
LONGEST_ROUND_SECONDS = 120.0
SERVER_KILLED = (0.1, 0.2)
"""After which parts of the run the server is killed."""

MOST_SLOPE = 64.0
"""KiB of private memory per 100 rounds, at most..."""

BREATH = 1024.0
"""...unless the line rises by less than this over a life: a heap comes and goes by as much..."""

CONNECTION = 26.0
POOLS = 2200.0
"""...and by so much for each connection, until the pools of gRPC are filled. Measured with a client
that connects and does nothing else: 1.06, 0.82, 0.27, 0.04 and 0.01 MB for each 40 connections."""

MOST_MORE = 24
"""Descriptors that a process may have more at its most than at its least: streams and files open
and close all the time."""

MOST_THREADS_MORE = 16
MOST_SLOWER = 1.5
"""The median round of the last tenth over that of the second tenth, at most."""


class Soak:
    """A run with a fault every few seconds, and the gauges of its processes."""

    def __init__(self, run: Run, seed: int) -> None:
        self._run = run
        self._chance = random.Random(seed)
        self._injected: list[Fault] = []
        self._suffering = Suffering(run, (), self._injected)
        self._gauges = Gauges(run.folder / "gauges.csv", own=(SERVER, *SPARED))
        self._kills = [round(run.setting.rounds * part) for part in SERVER_KILLED]

    def lead(self) -> None:
        """From the first start to the last stop.

        Raises:
            FailedRunError: if it stands still, or a process ends that should not.
        """
        run = self._run
        for name in run.names:
            run.start(name)
        fault_at = sample_at = 0.0
        last, last_at = 0, time.monotonic()
        while not run.done:
            now = time.monotonic()
            pause = self._suffering.go_on()
            run.revive()
            if now >= fault_at:
                fault_at = now + self._chance.uniform(*BETWEEN_SECONDS)
                self._suffering.begin(self._drawn(last))
            if now >= sample_at and last < run.setting.rounds:  # the end accounts for all of it
                sample_at = now + SAMPLE_SECONDS
                self._look(last)
            if run.round() > last:
                last, last_at = run.round(), now
                self._tell(last)
            elif now > last_at + LONGEST_ROUND_SECONDS:
                raise FailedRunError(f"round {last} takes more than {LONGEST_ROUND_SECONDS:.0f} s")
            time.sleep(pause)
        self._suffering.end()
        run.mend()
        run.stop(*run.sites)

    def courses(self) -> list[Course]:
        """What became of the processes."""
        return self._gauges.courses()

    def faults(self) -> str:
        """How many of each kind came about."""
        kinds = Counter(fault.kind for fault in self._injected)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"{kinds.total()} faults: {told}"

    def _drawn(self, number: int) -> Fault:
        chance = self._chance
        kind = chance.choice((*OF_SITES, *OF_LINKS))
        sites = list(self._run.setting.names)
        if kind in OF_SITES and kind != "stopped":
            sites = [site for site in sites if site not in SPARED]
        victim = chance.choice(sites)
        if self._kills and number >= self._kills[0]:
            self._kills.pop(0)
            kind, victim = "killed", SERVER
        seconds, amount = chance.uniform(0.1, 3.0), chance.random()
        return Fault(
            kind=kind, victim=victim, round=number, wait=0.0, seconds=seconds, amount=amount
        )

    def _look(self, number: int) -> None:
        opened = {name: self._run.link(name).connections for name in self._run.sites}
        opened[SERVER] = sum(opened.values())
        for name, process in self._run.processes.items():
            if process.pid is not None:
                self._gauges.look(name, process.pid, number, opened[name])

    def _tell(self, number: int) -> None:
        if number % 100 == 0:
            clock = time.strftime("%H:%M:%S")
            print(f"{clock} round {number}, {len(self._injected)} faults", flush=True)


def paces(run: Run) -> list[float]:
    """The median seconds of a round, in each tenth of the run."""
    seconds = [line["seconds"] for line in read_history(run.workspace)]
    tenth = max(1, len(seconds) // 10)
    return [median(seconds[start : start + tenth]) for start in range(0, tenth * 10, tenth)]


def grown(courses: list[Course], pace: list[float]) -> list[str]:
    """What grew beyond its bound."""
    found = []
    for each in courses:
        what = f"{each.name} ({each.pid})"
        risen, filled = each.slope * each.rounds / 100, min(each.connections * CONNECTION, POOLS)
        if each.own and each.slope > MOST_SLOPE and risen > BREATH + filled:
            found.append(f"{what}: memory, {each.slope:.0f} KiB per 100 rounds")
        if each.descriptors[1] - each.descriptors[0] > MOST_MORE:
            found.append(f"{what}: descriptors, {each.descriptors}")
        if each.threads[1] - each.threads[0] > MOST_THREADS_MORE:
            found.append(f"{what}: threads, {each.threads}")
    if pace[-1] > MOST_SLOWER * pace[1]:
        found.append(f"rounds: from {pace[1]:.3f} to {pace[-1]:.3f} s")
    return found


def main() -> None:
    """Soak, show the table, and fail if something grew or broke."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="hanse-soak-"))
    setting = Setting(
        name="soak",
        sites=SITES,
        rounds=asked.rounds,
        private=True,
        width=2,
        quorum=SITES - 2,
        every=10,
        deadline=30.0,
    )
    with Zygote() as zygote:
        federation = Federation(folder, SITES)
        place, fresh = folder / "soak", (SERVER, *SPARED)
        with Run(setting, federation, zygote, place, seed=asked.seed, fresh=fresh) as run:
            sys.exit(_soak(run, asked.seed))


def _soak(run: Run, seed: int) -> int:
    started = time.monotonic()
    soak, why = Soak(run, seed), ""
    try:
        soak.lead()
        judge(run, None)
    except (FailedRunError, HanseError, TimeoutError) as failure:
        why = str(failure)
    courses, pace = soak.courses(), paces(run)
    print(f"KiB of private memory; slopes in KiB per 100 rounds, after warming up\n{HEADING}")
    for each in courses:
        print(each.row())
    print("median seconds of a round, by tenths: " + " ".join(f"{each:.3f}" for each in pace))
    for name, bytes_ in sizes(run).items():
        print(f"{name}: {bytes_} bytes")
    found = [why] * bool(why) + grown(courses, pace)
    for what in found:
        print(f"FAILED: {what}")
    print(
        f"soak: {run.ended_rounds()} rounds, {SITES} sites, {time.monotonic() - started:.0f} s; "
        f"{soak.faults()}; {len(courses)} lives judged; {len(found)} failed"
    )
    return 1 if found else 0


def sizes(run: Run) -> dict[str, int]:
    """The files that a long run writes to, of the server and of the first site."""
    state = run.sites[run.setting.names[0]] / "state"
    server = [run.workspace / name for name in ("history.jsonl", "journal.sqlite")]
    site = [state / name for name in ("ledger.sqlite", "audit.jsonl", "outbox.sqlite")]
    return {f"{file.parent.name}/{file.name}": file.stat().st_size for file in [*server, *site]}


if __name__ == "__main__":
    main()

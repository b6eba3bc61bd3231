"""Runs from seeds: what each is to suffer, how it went, and what all of them come to."""

from __future__ import annotations

import heapq
import random
import shutil
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from hanse.errors import HanseError
from torch import Tensor

from tests.faults.chaos import faults
from tests.faults.chaos.faults import DISKS, KINDS, LINKS, NETWORKS, PROCESSES, SOON, Fault
from tests.faults.chaos.grounds import Federation, Setting, can_mount
from tests.faults.chaos.netns import Spaces, abilities
from tests.faults.chaos.run import SERVER, FailedRunError, Run
from tests.faults.chaos.verdict import judge, model_of
from tests.faults.chaos.zygote import Zygote

SITES = 3
LONGEST_SECONDS = 120.0
SETTINGS = (
    Setting(name="plain", sites=SITES, rounds=30, private=False, width=2),
    Setting(name="private", sites=SITES, rounds=30, private=True, width=2),
    Setting(name="plain-large", sites=SITES, rounds=8, private=False, width=100_000),
    Setting(name="private-large", sites=SITES, rounds=6, private=True, width=100_000),
)
SHARES = (35, 35, 15, 15)
LEFT_IN_A_LOG = 25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a seed comes to.

    Attributes:
        small: whose files are on a small disk.
        spaces: whether each site has a network namespace.
    """

    seed: int
    setting: Setting
    faults: tuple[Fault, ...]
    small: tuple[str, ...]
    spaces: bool


def planned(seed: int, *, mounts: bool) -> Plan:
    """The plan of a seed, on this machine."""
    chance = random.Random(f"hanse {seed}")
    [setting] = chance.choices(SETTINGS, SHARES)
    spaces = abilities().spaces and chance.random() < 0.5
    kinds = [*PROCESSES, *LINKS, *(NETWORKS if spaces else ())]
    if spaces and not (abilities().netem or abilities().filters):
        kinds = [kind for kind in kinds if kind not in ("lossy", "slow_network")]
    drawn = faults.drawn(chance, kinds, setting.names, setting.rounds, chance.randint(3, 6))
    small: tuple[str, ...] = ()
    if mounts and chance.random() < 0.3:
        # A site that refuses for want of room costs its round the quorum: where noise is in the
        # model anyway, that can be.
        victim = chance.choice((SERVER, *setting.names)) if setting.private else SERVER
        small = (victim,)
        [full] = faults.drawn(chance, list(DISKS), (victim,), setting.rounds, 1)
        kept = [each for each in drawn if each.kind != "moved" or each.victim != victim]
        full = Fault(**(vars(full) | {"victim": victim}))
        drawn = sorted([*kept, full], key=lambda each: (each.round, each.wait))
    return Plan(seed=seed, setting=setting, faults=tuple(drawn), small=small, spaces=spaces)


class Suffering:
    """The faults of a plan as they befall a run: what is due, what is under way.

    Args:
        injected: is told each fault that has come to its moment.
    """

    def __init__(self, run: Run, plan: Plan, injected: list[Fault]) -> None:
        self._run = run
        self._waiting = list(plan.faults)
        self._due: list[tuple[float, int, Fault, faults.Acting]] = []
        self._begun = 0
        self._injected = injected

    def go_on(self) -> float:
        """Do what is due; seconds until there may be more to do."""
        now = time.monotonic()
        while self._waiting and self._run.round() >= self._waiting[0].round:
            fault = self._waiting.pop(0)
            self._later(now + fault.wait, fault, KINDS[fault.kind](self._run, fault))
        while self._due and self._due[0][0] <= now:
            _, _, fault, acting = heapq.heappop(self._due)
            pause = next(acting, None)
            if pause != SOON and fault not in self._injected:
                self._injected.append(fault)
            if pause is not None:
                self._later(time.monotonic() + pause, fault, acting)
        left = self._due[0][0] - time.monotonic() if self._due else 0.01
        return min(0.01, max(left, 0.0))

    def end(self) -> None:
        """Let what is under way be."""
        for *_, acting in self._due:
            acting.close()
        self._due.clear()

    def _later(self, when: float, fault: Fault, acting: faults.Acting) -> None:
        self._begun += 1
        heapq.heappush(self._due, (when, self._begun, fault, acting))


class Series:
    """Runs, one after the other, over one federation and one zygote."""

    def __init__(self, folder: Path, *, defect: str = "") -> None:
        self._folder = folder
        self._defect = defect
        self._uninterrupted: dict[str, dict[str, Tensor]] = {}
        self._opened = ExitStack()
        self._runs = Counter[str]()
        self._kinds = Counter[str]()
        self._seconds = 0.0
        self._rounds = 0
        self.failed: list[int] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._zygote = self._opened.enter_context(Zygote())
        self._spaces = self._opened.enter_context(Spaces())
        self._federation = Federation(self._folder, SITES)
        self._mounts = can_mount(self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def run(self, seed: int) -> str:
        """Run a seed; a line that says how it went, and more where it failed."""
        plan = planned(seed, mounts=self._mounts)
        expected = None if plan.setting.private else self._undisturbed(plan.setting)
        folder = self._folder / f"run-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        injected: list[Fault] = []
        spaces = self._spaces.get(SITES) if plan.spaces else []
        why, more = "", ""
        with Run(
            plan.setting,
            self._federation,
            self._zygote,
            folder,
            seed=seed,
            spaces=spaces,
            small=plan.small,
            defect=self._defect,
        ) as run:
            try:
                self._suffer(run, plan, injected)
                judge(run, expected)
            except (FailedRunError, HanseError, TimeoutError) as failure:
                why, more = f"{failure}", _evidence(run)
        seconds = time.monotonic() - started
        self._note(plan, injected, seconds, why)
        if not why:
            shutil.rmtree(folder)
        told = " ".join(map(str, injected))
        verdict = f"FAILED: {why}" if why else "ok"
        line = f"seed {seed}: {plan.setting.name}{' in namespaces' if plan.spaces else ''}, "
        line += f"{plan.setting.rounds} rounds, {seconds:.1f} s, {told}: {verdict}"
        again = f"\n  again: make chaos SEED={seed} RUNS=1; its folder: {folder}{more}"
        return line + (again if why else "")

    def counts(self) -> str:
        """The last line."""
        able = abilities()
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._kinds.most_common())
        runs = ", ".join(f"{count} {name}" for name, count in sorted(self._runs.items()))
        note = f" ({able.why_not})" if able.why_not else ""
        failed = f" (seeds {', '.join(map(str, self.failed))})" if self.failed else ""
        return (
            f"chaos: {self._runs.total()} runs ({runs}), {self._rounds} rounds, "
            f"{self._seconds:.0f} s; {self._kinds.total()} faults: {kinds}; namespaces: "
            f"{'yes' if able.spaces else 'no'}, netem: {'yes' if able.netem else 'no'}, "
            f"loss by filter: {'yes' if able.filters else 'no'}{note}, small disks: "
            f"{'yes' if self._mounts else 'no'}; {len(self.failed)} failed{failed}"
        )

    def _undisturbed(self, setting: Setting) -> dict[str, Tensor]:
        """The model of a run that nothing befalls, of the same setting."""
        if setting.name not in self._uninterrupted:
            folder = self._folder / f"undisturbed-{setting.name}"
            plan = Plan(seed=0, setting=setting, faults=(), small=(), spaces=False)
            with Run(setting, self._federation, self._zygote, folder) as run:
                self._suffer(run, plan, [])
                self._uninterrupted[setting.name] = model_of(run)
                judge(run, self._uninterrupted[setting.name])
            shutil.rmtree(folder)
        return self._uninterrupted[setting.name]

    def _suffer(self, run: Run, plan: Plan, injected: list[Fault]) -> None:
        """Run from the first start to the last stop."""
        deadline = time.monotonic() + LONGEST_SECONDS
        suffering = Suffering(run, plan, injected)
        for name in run.names:
            run.start(name)
        while not run.done:
            pause = suffering.go_on()
            run.revive()
            if time.monotonic() > deadline:
                raise FailedRunError(f"it hangs: not at its end after {LONGEST_SECONDS:.0f} s")
            time.sleep(pause)
        suffering.end()
        run.mend()
        for site in run.sites:
            run.stop(site)

    def _note(self, plan: Plan, injected: list[Fault], seconds: float, why: str) -> None:
        self._runs[plan.setting.name] += 1
        self._kinds.update(fault.kind for fault in injected)
        self._seconds += seconds
        self._rounds += plan.setting.rounds
        if why:
            self.failed.append(plan.seed)


def _evidence(run: Run) -> str:
    """What a person who looks for the cause needs first."""
    told = [f"\n  status: {run.status()}"]
    for name in run.names:
        lines = run.log(name).read_text().splitlines()[-LEFT_IN_A_LOG:]
        told += [f"  {name}, last: {line}" for line in lines]
    return "\n".join(told)

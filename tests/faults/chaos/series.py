"""Runs from seeds: what each is to suffer, how it went, and what all of them come to."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hanse.errors import HanseError
from torch import Tensor

from tests.faults.chaos.fault import Fault
from tests.faults.chaos.grounds import Federation, Setting, can_mount
from tests.faults.chaos.kinds import DISKS, LINKS, NETWORKS, PROCESSES
from tests.faults.chaos.kinds import drawn as drawn_faults
from tests.faults.chaos.netns import Spaces, abilities
from tests.faults.chaos.process import SERVER, FailedRunError
from tests.faults.chaos.run import Run
from tests.faults.chaos.suffering import Suffering
from tests.faults.chaos.verdict import judge, model_of
from tests.faults.chaos.zygote import Zygote

SITES = 3
LONGEST_SECONDS = 240.0
SETTINGS = (
    Setting(name="plain", sites=SITES, rounds=40, private=False, width=2),
    Setting(name="private", sites=SITES, rounds=40, private=True, width=2),
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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run went.

    Attributes:
        injected: the faults that came to their moment, in that order.
        why: it failed; empty if it did not.
        evidence: what a person who looks for the cause needs first.
    """

    plan: Plan
    injected: tuple[Fault, ...]
    seconds: float
    why: str
    evidence: str

    def __str__(self) -> str:
        plan = self.plan
        where = " in namespaces" if plan.spaces else ""
        told = " ".join(map(str, self.injected)) or "nothing"
        line = (
            f"seed {plan.seed}: {plan.setting.name}{where}, {plan.setting.rounds} rounds, "
            f"{self.seconds:.1f} s, {told}: "
        )
        if not self.why:
            return line + "ok"
        again = f"make chaos SEED={plan.seed} RUNS=1"
        return f"{line}FAILED: {self.why}\n  again: {again}; {self.evidence}"


def planned(seed: int, *, mounts: bool) -> Plan:
    """The plan of a seed, on this machine."""
    chance = random.Random(f"hanse {seed}")
    [setting] = chance.choices(SETTINGS, SHARES)
    spaces = abilities().spaces and chance.random() < 0.5
    kinds = [*PROCESSES, *LINKS, *(NETWORKS if spaces else ())]
    if spaces and not (abilities().netem or abilities().filters):
        kinds = [kind for kind in kinds if kind not in ("lossy", "slow_network")]
    drawn = drawn_faults(chance, kinds, setting.names, setting.rounds, chance.randint(4, 7))
    small: tuple[str, ...] = ()
    if mounts and chance.random() < 0.3:
        # A site that refuses for want of room costs its round the quorum: where noise is in the
        # model anyway, that can be.
        victim = chance.choice((SERVER, *setting.names)) if setting.private else SERVER
        small = (victim,)
        [full] = drawn_faults(chance, list(DISKS), (victim,), setting.rounds, 1)
        kept = [each for each in drawn if each.kind != "moved" or each.victim != victim]
        full = Fault(**(vars(full) | {"victim": victim}))
        drawn = sorted([*kept, full], key=lambda each: (each.round, each.wait))
    return Plan(seed=seed, setting=setting, faults=tuple(drawn), small=small, spaces=spaces)


class Series:
    """Runs, one after the other, over one federation and one zygote.

    Args:
        folder: to work in.
        lane: a number of its own for each of those that run at the same time.
        longest: seconds after which a run counts as one that hangs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        lane: int = 0,
        longest: float = LONGEST_SECONDS,
    ) -> None:
        self._folder = folder
        self._lane = lane
        self._longest = longest
        self._uninterrupted: dict[str, dict[str, Tensor]] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._zygote = self._opened.enter_context(Zygote())
        self._spaces = self._opened.enter_context(Spaces(first=1 + SITES * self._lane))
        self._federation = Federation(self._folder, SITES)
        self.mounts = can_mount(self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def run(self, seed: int, *, defect: str = "") -> Outcome:
        """The run of a seed."""
        return self.suffer(planned(seed, mounts=self.mounts), defect=defect)

    def suffer(self, plan: Plan, *, defect: str = "") -> Outcome:
        """Run a plan, and judge it; its folder is kept if it failed.

        Args:
            defect: planted in every process of the run, but not of the uninterrupted one.
        """
        expected = None if plan.setting.private else self._undisturbed(plan.setting)
        folder = self._folder / f"run-{plan.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        injected: list[Fault] = []
        why = evidence = ""
        with self._made(plan, folder, defect) as run:
            try:
                self._lead(run, plan, injected)
                judge(run, expected)
            except (FailedRunError, HanseError, TimeoutError) as failure:
                why, evidence = str(failure), _evidence(run)
        if not why:
            shutil.rmtree(folder)
        return Outcome(
            plan=plan,
            injected=tuple(injected),
            seconds=time.monotonic() - started,
            why=why,
            evidence=f"its folder: {folder}\n{evidence}",
        )

    def _undisturbed(self, setting: Setting) -> dict[str, Tensor]:
        """The model of a run that nothing befalls, of the same setting."""
        if setting.name not in self._uninterrupted:
            folder = self._folder / f"undisturbed-{setting.name}"
            plan = Plan(seed=0, setting=setting, faults=(), small=(), spaces=False)
            with self._made(plan, folder, "") as run:
                self._lead(run, plan, [])
                self._uninterrupted[setting.name] = model_of(run)
                judge(run, self._uninterrupted[setting.name])
            shutil.rmtree(folder)
        return self._uninterrupted[setting.name]

    def _made(self, plan: Plan, folder: Path, defect: str) -> Run:
        return Run(
            plan.setting,
            self._federation,
            self._zygote,
            folder,
            seed=plan.seed,
            spaces=self._spaces.get(SITES) if plan.spaces else (),
            small=plan.small,
            defect=defect,
        )

    def _lead(self, run: Run, plan: Plan, injected: list[Fault]) -> None:
        """Run from the first start to the last stop."""
        deadline = time.monotonic() + self._longest
        suffering = Suffering(run, plan.faults, injected)
        for name in run.names:
            run.start(name)
        while not run.done:
            pause = suffering.go_on()
            run.revive()
            if time.monotonic() > deadline:
                raise FailedRunError(f"it hangs: not at its end after {self._longest:.0f} s")
            time.sleep(pause)
        suffering.end()
        run.mend()
        run.stop(*run.sites)


def _evidence(run: Run) -> str:
    """What a person who looks for the cause needs first."""
    told = [f"\n  status: {run.status()}"]
    for name in run.names:
        lines = run.log(name).read_text().splitlines()[-LEFT_IN_A_LOG:]
        told += [f"  {name}, last: {line}" for line in lines]
    return "\n".join(told)


def counts(outcomes: Sequence[Outcome], *, mounts: bool) -> str:
    """What runs come to, in a line."""
    able = abilities()
    settings = Counter(outcome.plan.setting.name for outcome in outcomes)
    kinds = Counter(fault.kind for outcome in outcomes for fault in outcome.injected)
    failed = [outcome.plan.seed for outcome in outcomes if outcome.why]
    can = {"namespaces": able.spaces, "netem": able.netem, "loss by filter": able.filters}
    can["small disks"] = mounts
    told = [
        f"chaos: {len(outcomes)} runs ({_listed(settings)})",
        f"{sum(outcome.plan.setting.rounds for outcome in outcomes)} rounds",
        f"{kinds.total()} faults ({_listed(kinds)})",
        ", ".join(f"{name}: {'yes' if there else 'no'}" for name, there in can.items()),
        f"{len(failed)} failed{': seeds ' + ', '.join(map(str, failed)) if failed else ''}",
    ]
    return "; ".join(told)


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())

"""The faults: each acts on a run, waits by yielding seconds, and mends what it broke."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass

from hanse.errors import (
    CertificateExpiredError,
    LedgerError,
    OutboxError,
    QuorumError,
    WorkspaceError,
)

from tests.faults.chaos.links import PIECE, Way
from tests.faults.chaos.netns import abilities
from tests.faults.chaos.run import SERVER, Run

Acting = Generator[float, None, None]
SOON = 0.001
"""Yielded by a fault that still waits for its moment: seconds between two looks."""

FULL = {WorkspaceError.exit_code, LedgerError.exit_code, OutboxError.exit_code}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is to happen.

    Attributes:
        kind: name of it in :data:`KINDS`.
        victim: the server, or a site.
        round: it begins once this round is under way.
        wait: seconds from then on.
        seconds: how long it lasts.
        amount: what more there is to choose, in [0, 1).
    """

    kind: str
    victim: str
    round: int
    wait: float
    seconds: float
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}({self.victim})@{self.round}"


# --- processes ------------------------------------------------------------------------------


def killed(run: Run, fault: Fault) -> Acting:
    """kill -9 at any moment."""
    run.kill(fault.victim)
    yield fault.seconds
    run.start(fault.victim)


def killed_while_uploading(run: Run, fault: Fault) -> Acting:
    """kill -9 of the server or the site while a reply is on its way."""
    link = run.link(fault.victim if fault.victim != SERVER else run.setting.names[0])
    size = 24 * run.setting.width
    goal = link.passed["up"] + round(size * fault.amount) + 1
    while link.passed["up"] < goal:
        yield SOON
    run.kill(fault.victim)
    yield fault.seconds
    run.start(fault.victim)


def killed_while_checkpointing(run: Run, fault: Fault) -> Acting:
    """kill -9 of the server while a checkpoint is half written."""
    while not any((run.workspace / "checkpoints").glob(".round-*")):
        yield SOON
    run.kill(SERVER)
    yield fault.seconds
    run.start(SERVER)


def killed_at_connecting(run: Run, fault: Fault) -> Acting:
    """kill -9 of a site, and again right after it is back."""
    run.kill(fault.victim)
    run.start(fault.victim)
    link = run.link(fault.victim)
    goal = link.passed["down"] + round(6000 * fault.amount) + 1
    while link.passed["down"] < goal:
        yield SOON
    run.kill(fault.victim)
    yield fault.seconds
    run.start(fault.victim)


def _dying(run: Run, fault: Fault, *, power: bool) -> Acting:
    run.kill(fault.victim)
    process = run.processes[fault.victim]
    process.expected.add(-signal.SIGKILL)
    ended = len(process.ended)
    last = 120 if fault.victim == SERVER else 60
    run.start(fault.victim, dies_at=1 + round(last * fault.amount), power=power)
    while len(process.ended) == ended:
        yield SOON
    process.deaths += 1
    yield fault.seconds
    run.start(fault.victim)


def died_at_a_write(run: Run, fault: Fault) -> Acting:
    """Dies right before or after a commit, an fsync, a rename or the making of a folder."""
    return _dying(run, fault, power=False)


def power_cut(run: Run, fault: Fault) -> Acting:
    """The same, and what was not fsynced is gone or cut short."""
    return _dying(run, fault, power=True)


def stopped(run: Run, fault: Fault) -> Acting:
    """SIGSTOP, and SIGCONT later."""
    run.send(fault.victim, signal.SIGSTOP)
    yield fault.seconds
    run.send(fault.victim, signal.SIGCONT)


def told_to_stop(run: Run, fault: Fault) -> Acting:
    """SIGTERM, and a new start."""
    run.stop(fault.victim)
    yield fault.seconds
    run.start(fault.victim)


def moved(run: Run, fault: Fault) -> Acting:
    """Killed, and gone on with on another machine, as it were: another folder, another port."""
    run.kill(fault.victim)
    run.move(fault.victim)
    yield fault.seconds
    run.start(fault.victim)


def clock_jumped(run: Run, fault: Fault) -> Acting:
    """The clock is an hour to thirty days off, and stays so over a restart; then it is set right.

    A machine whose clock is before the certificate's first day is turned away by name.
    """
    process = run.processes[fault.victim]
    process.clock = run.jump
    process.expected.add(CertificateExpiredError.exit_code)
    run.send(fault.victim, signal.SIGUSR1)
    yield fault.seconds / 2
    run.kill(fault.victim)
    run.start(fault.victim)
    yield fault.seconds / 2
    run.kill(fault.victim)
    process.clock = 0.0
    run.start(fault.victim)


def disk_full(run: Run, fault: Fault) -> Acting:
    """The disk of the victim's files is full for a while; what ends, ends by name."""
    process, disk = run.processes[fault.victim], run.disks[fault.victim]
    process.expected |= FULL
    if fault.victim != SERVER:  # three rounds that a site refuses
        run.processes[SERVER].expected.add(QuorumError.exit_code)
    disk.fill(round(20_000 * fault.amount**2))
    yield fault.seconds
    if fault.amount < 0.5:  # and it does not come up on a full disk
        run.kill(fault.victim)
        run.start(fault.victim)
        yield fault.seconds
    disk.free()
    yield 0.2
    run.start(fault.victim)


# --- links ----------------------------------------------------------------------------------


def cut(run: Run, fault: Fault) -> Acting:
    """Every connection of the site is reset."""
    run.link(fault.victim).cut()
    yield fault.seconds


def cut_in_transfer(run: Run, fault: Fault) -> Acting:
    """The connection is reset in the middle of an update or of a model."""
    link = run.link(fault.victim)
    way = _way(fault)
    before = link.cuts
    link.cut_at[way] = link.passed[way] + round(24 * run.setting.width * fault.amount) + 200
    while link.cuts == before:
        yield SOON


def silent(run: Run, fault: Fault) -> Acting:
    """Nothing comes through for a while, in one way or both, and nothing is closed."""
    link = run.link(fault.victim)
    both: frozenset[Way] = frozenset(("up", "down"))
    link.silent = both if fault.amount < 0.5 else frozenset((_way(fault),))
    yield fault.seconds
    link.silent = frozenset()


def delayed(run: Run, fault: Fault) -> Acting:
    """Each piece comes up to a tenth of a second late."""
    link = run.link(fault.victim)
    link.delay = 0.1 * fault.amount
    yield fault.seconds
    link.delay = 0.0


def trickling(run: Run, fault: Fault) -> Acting:
    """A few bytes at a time come through."""
    link = run.link(fault.victim)
    large = run.setting.width > 1000
    link.piece, link.delay = (4096, 0.004) if large else (16 + round(100 * fault.amount), 0.01)
    yield fault.seconds
    link.piece, link.delay = PIECE, 0.0


def corrupted(run: Run, fault: Fault) -> Acting:
    """One bit is turned over on the way."""
    link = run.link(fault.victim)
    way = _way(fault)
    link.corrupt_at[way] = link.passed[way] + round(20_000 * fault.amount)
    while way in link.corrupt_at:
        yield SOON


def _way(fault: Fault) -> Way:
    return "up" if int(fault.amount * 1000) % 2 else "down"


# --- networks -------------------------------------------------------------------------------


def partitioned(run: Run, fault: Fault) -> Acting:
    """The link of the site's network namespace is down for a while."""
    space = run.spaces[fault.victim]
    space.part()
    yield fault.seconds
    space.join()


def lossy(run: Run, fault: Fault) -> Acting:
    """Packets are lost by chance, both ways."""
    space = run.spaces[fault.victim]
    space.lose(round(2 + 18 * fault.amount, 1), abilities())
    yield fault.seconds
    space.mend()


def slow_network(run: Run, fault: Fault) -> Acting:
    """The link lets few kilobits through in a second, and drops what queues up."""
    space = run.spaces[fault.victim]
    large = run.setting.width > 1000
    space.slow_down(20_000 if large else 200 + round(1000 * fault.amount))
    yield fault.seconds
    space.mend()


# --- which of them --------------------------------------------------------------------------

PROCESSES: dict[str, Callable[[Run, Fault], Acting]] = {
    each.__name__: each
    for each in (
        killed,
        killed_while_uploading,
        killed_while_checkpointing,
        killed_at_connecting,
        died_at_a_write,
        power_cut,
        stopped,
        told_to_stop,
        moved,
        clock_jumped,
    )
}
DISKS = {disk_full.__name__: disk_full}
LINKS: dict[str, Callable[[Run, Fault], Acting]] = {
    each.__name__: each for each in (cut, cut_in_transfer, silent, delayed, trickling, corrupted)
}
NETWORKS: dict[str, Callable[[Run, Fault], Acting]] = {
    each.__name__: each for each in (partitioned, lossy, slow_network)
}
KINDS = PROCESSES | DISKS | LINKS | NETWORKS
ONLY_SITES = {killed_at_connecting.__name__, *LINKS, *NETWORKS}
ONLY_SERVER = {killed_while_checkpointing.__name__}


def drawn(
    chance: random.Random, kinds: list[str], sites: tuple[str, ...], rounds: int, count: int
) -> list[Fault]:
    """Faults, by chance; the earliest first."""
    faults = []
    for _ in range(count):
        kind = chance.choice(kinds)
        victim = chance.choice((SERVER, *sites))
        if kind in ONLY_SITES and victim == SERVER:
            victim = chance.choice(sites)
        if kind in ONLY_SERVER:
            victim = SERVER
        fault = Fault(
            kind=kind,
            victim=victim,
            round=chance.randint(0, max(1, rounds * 3 // 4)),
            wait=chance.uniform(0.0, 0.2),
            seconds=chance.choice((chance.uniform(0.0, 0.5), chance.uniform(0.5, 5.0))),
            amount=chance.random(),
        )
        faults.append(fault)
    return sorted(faults, key=lambda each: (each.round, each.wait))

"""Faults of processes, clocks and disks: each acts on a run, and mends what it broke."""

from __future__ import annotations

import signal

from hanse.errors import (
    CertificateExpiredError,
    LedgerError,
    OutboxError,
    QuorumError,
    WorkspaceError,
)

from tests.faults.chaos.fault import SOON, Acting, Fault
from tests.faults.chaos.process import SERVER
from tests.faults.chaos.run import Run

FULL = {WorkspaceError.exit_code, LedgerError.exit_code, OutboxError.exit_code}


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
    """The clock is one hour to ten off, and stays so over a restart; then it is set right.

    More than an instruction's time to live, and the site would refuse its rounds by name.

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

"""The kinds of faults, and faults drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.faults.chaos import faults, faults_of_links
from tests.faults.chaos.fault import Acting, Fault
from tests.faults.chaos.process import SERVER
from tests.faults.chaos.run import Run

PROCESSES: dict[str, Callable[[Run, Fault], Acting]] = {
    each.__name__: each
    for each in (
        faults.killed,
        faults.killed_while_uploading,
        faults.killed_while_checkpointing,
        faults.killed_at_connecting,
        faults.died_at_a_write,
        faults.power_cut,
        faults.stopped,
        faults.told_to_stop,
        faults.moved,
        faults.clock_jumped,
    )
}
DISKS = {faults.disk_full.__name__: faults.disk_full}
LINKS: dict[str, Callable[[Run, Fault], Acting]] = {
    each.__name__: each
    for each in (
        faults_of_links.cut,
        faults_of_links.cut_in_transfer,
        faults_of_links.silent,
        faults_of_links.delayed,
        faults_of_links.trickling,
        faults_of_links.corrupted,
    )
}
NETWORKS: dict[str, Callable[[Run, Fault], Acting]] = {
    each.__name__: each
    for each in (faults_of_links.partitioned, faults_of_links.lossy, faults_of_links.slow_network)
}
KINDS = PROCESSES | DISKS | LINKS | NETWORKS
ONLY_SITES = {faults.killed_at_connecting.__name__, *LINKS, *NETWORKS}
ONLY_SERVER = {faults.killed_while_checkpointing.__name__}


def drawn(
    chance: random.Random, kinds: list[str], sites: tuple[str, ...], rounds: int, count: int
) -> list[Fault]:
    """Faults, by chance; the earliest first."""
    found = []
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
        found.append(fault)
    return sorted(found, key=lambda each: (each.round, each.wait))

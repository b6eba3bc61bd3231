"""Faults of links and networks: each acts on a run, and mends what it broke."""

from __future__ import annotations

from tests.faults.chaos.fault import SOON, Acting, Fault
from tests.faults.chaos.links import PIECE, Way
from tests.faults.chaos.netns import abilities
from tests.faults.chaos.run import Run


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

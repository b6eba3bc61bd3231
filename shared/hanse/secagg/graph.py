"""Who masks with whom: everybody with everybody, or sparse neighbourhoods in a large cohort."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

COMPLETE = 16
"""Up to this many sites, each is every other's neighbour."""

COLLUDING = 0.2
"""Share of a sparse cohort that may side with the server."""

SECURITY = 2.0**-40
"""Chance that a sparse graph exposes a site although no more than that collude."""

FAILURE = 2.0**-20
"""Chance that a sparse graph cannot be unmasked although as few were lost as may be."""


def least(threshold: float, sites: int) -> int:
    """How many of ``sites`` make up the fraction ``threshold``, rounded up."""
    return math.ceil(round(threshold * sites, 9))


@dataclass(frozen=True)
class Density:
    """How many neighbours each site has, and how many holders of shares recover a secret.

    The holders of a site's shares are its neighbours and itself.
    """

    degree: int
    shares: int


@lru_cache(maxsize=256)
def density(sites: int, threshold: float) -> Density:
    """The sparsest graph that serves a cohort (Bell et al. 2020, section 3).

    With ``threshold`` of the sites surviving, those lost at random, and a fifth of all siding
    with the server: the honest survivors stay connected and no site has enough colluding
    neighbours to be unmasked, but for a chance of 2^-40; and every site has enough surviving
    neighbours, but for 2^-20. Where no sparse graph does, or there are few sites, it is complete.
    """
    lost = sites - least(threshold, sites)
    colluding = math.floor(COLLUDING * sites)
    if sites > COMPLETE:
        for degree in range(2, sites - 1, 2):
            if _disconnected(sites, degree, lost + colluding) > SECURITY:
                continue
            shares = _most_shares(sites, degree, lost)
            if sites * _at_least(shares, sites - 1, colluding, degree) <= SECURITY:
                return Density(degree, shares)
    return Density(sites - 1, least(threshold, sites))


def _disconnected(sites: int, degree: int, removed: int) -> float:
    """Bound on the chance that removing so many sites at random parts the graph.

    A site's neighbours are the ``degree / 2`` before and after it on a circle; it comes apart
    only where two gaps of ``degree / 2`` in a row open.
    """
    chance = _log_choose(sites - degree, removed - degree) - _log_choose(sites, removed)
    return math.comb(sites, 2) * math.exp(chance)


def _most_shares(sites: int, degree: int, lost: int) -> int:
    """The most shares that may be asked for without too many rounds failing; at least 1."""
    for shares in range(degree + 1, 1, -1):
        too_many = degree + 1 - shares  # of the neighbours of a site that is lost itself
        if sites * _at_least(too_many, sites - 1, lost, degree) <= FAILURE:
            return shares
    return 1


def _at_least(count: int, population: int, marked: int, drawn: int) -> float:
    """The chance that of ``drawn`` of a population at least ``count`` are marked."""
    whole = _log_choose(population, drawn)
    return sum(
        math.exp(_log_choose(marked, k) + _log_choose(population - marked, drawn - k) - whole)
        for k in range(count, min(marked, drawn) + 1)
    )


def _log_choose(population: int, drawn: int) -> float:
    if not 0 <= drawn <= population:
        return -math.inf
    return (
        math.lgamma(population + 1) - math.lgamma(drawn + 1) - math.lgamma(population - drawn + 1)
    )


class Graph:
    """The neighbourhoods of a cohort, the same at every end that knows names and seed.

    Args:
        names: of the sites.
        seed: decides who is whose neighbour; it is made from all announced keys, so that nobody
            chooses it alone.
    """

    def __init__(self, names: Sequence[str], *, seed: bytes, threshold: float) -> None:
        self._names = sorted(names)
        self._seed = seed
        self.density = density(len(names), threshold)

    def neighbours(self, name: str) -> tuple[str, ...]:
        """The neighbours of a site, sorted."""
        if self.density.degree >= len(self._names) - 1:
            return tuple(other for other in self._names if other != name)
        at, half = self._places[name], self.density.degree // 2
        steps = [step for step in range(-half, half + 1) if step]
        return tuple(sorted(self._circle[(at + step) % len(self._circle)] for step in steps))

    def holders(self, name: str) -> tuple[str, ...]:
        """Who holds shares of a site's secrets, in the order of the shares: also itself."""
        return tuple(sorted((*self.neighbours(name), name)))

    @cached_property
    def _circle(self) -> list[str]:
        def place(name: str) -> bytes:
            return hashlib.sha256(self._seed + name.encode()).digest()

        return sorted(self._names, key=place)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self._circle)}

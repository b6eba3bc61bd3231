"""Who masks with whom: symmetric, connected after losses, and safe from a fifth of the sites."""

from __future__ import annotations

import random

import pytest
from hanse.secagg.graph import COLLUDING, COMPLETE, Graph, density, least

THRESHOLD = 2 / 3


def names(count: int) -> list[str]:
    return [f"site-{number:04d}" for number in range(count)]


def graph(count: int, seed: bytes = b"keys") -> Graph:
    return Graph(names(count), seed=seed, threshold=THRESHOLD)


@pytest.mark.parametrize("count", [2, 3, 4, 16])
def test_a_small_cohort_masks_all_with_all(count: int) -> None:
    whole = graph(count)
    for name in names(count):
        assert whole.neighbours(name) == tuple(n for n in names(count) if n != name)
        assert whole.holders(name) == tuple(names(count))
    assert whole.density.shares == least(THRESHOLD, count)


@pytest.mark.parametrize("count", [17, 24, 64, 200])
def test_a_large_cohort_has_sparse_neighbourhoods(count: int) -> None:
    sparse = graph(count)
    assert sparse.density.degree < count - 1
    for name in names(count):
        neighbours = sparse.neighbours(name)
        assert len(set(neighbours)) == sparse.density.degree
        assert name not in neighbours
        assert all(name in sparse.neighbours(other) for other in neighbours)


def test_neighbourhoods_grow_slowly() -> None:
    assert density(16, THRESHOLD).degree == COMPLETE - 1
    assert density(64, THRESHOLD).degree <= 36
    assert density(500, THRESHOLD).degree <= 150


@pytest.mark.parametrize("count", [17, 33, 64, 100])
@pytest.mark.parametrize("threshold", [0.55, THRESHOLD, 0.9])
def test_no_site_has_enough_neighbours_that_collude(count: int, threshold: float) -> None:
    sparse = Graph(names(count), seed=b"keys", threshold=threshold)
    randomness = random.Random(1)
    for _ in range(50):
        colluding = set(randomness.sample(names(count), int(COLLUDING * count)))
        for name in set(names(count)) - colluding:
            assert len(colluding & set(sparse.neighbours(name))) < sparse.density.shares


@pytest.mark.parametrize("count", [17, 33, 64, 100])
def test_what_may_be_lost_leaves_it_connected_and_every_secret_recoverable(count: int) -> None:
    sparse, randomness = graph(count), random.Random(2)
    for _ in range(50):
        alive = set(randomness.sample(names(count), least(THRESHOLD, count)))
        for name in names(count):
            assert len(alive & set(sparse.holders(name))) >= sparse.density.shares
        honest = alive - set(randomness.sample(names(count), int(COLLUDING * count)))
        assert reached(sparse, honest) == honest


def reached(sparse: Graph, alive: set[str]) -> set[str]:
    seen, frontier = set[str](), {min(alive)}
    while frontier:
        seen |= frontier
        frontier = {n for name in frontier for n in sparse.neighbours(name)} & alive - seen
    return seen


def test_the_graph_follows_from_the_keys() -> None:
    one, same, other = graph(64), graph(64), graph(64, seed=b"other keys")
    assert all(one.neighbours(name) == same.neighbours(name) for name in names(64))
    assert any(one.neighbours(name) != other.neighbours(name) for name in names(64))


@pytest.mark.parametrize(
    ("threshold", "count", "expected"), [(2 / 3, 3, 2), (2 / 3, 4, 3), (0.7, 10, 7), (1.0, 5, 5)]
)
def test_the_threshold_is_rounded_up(threshold: float, count: int, expected: int) -> None:
    assert least(threshold, count) == expected

"""The terms of a session: how many make a sum, and who masks with whom."""

from __future__ import annotations

import pytest
from hanse.aggregation import SecureAggregation
from hanse.errors import SecureAggregationError
from hanse.secagg.cohort import MOST_SITES, Announcement, Cohort, SessionId

SESSION = SessionId(run_id=7, server_round=1, token="a" * 32, job="b" * 64)


def cohort(count: int, threshold: float = 2 / 3) -> Cohort:
    members = [
        Announcement(
            name=f"site-{number:04d}",
            credential=b"",
            mask_key=bytes(32),
            share_key=bytes(32),
            weight=1.0,
        )
        for number in range(count)
    ]
    return Cohort(SESSION, members, SecureAggregation(enabled=True, threshold=threshold))


@pytest.mark.parametrize("count", [2, 16, 17, 500])
def test_every_two_sites_mask_with_each_other(count: int) -> None:
    """So that a server cuts no site off from the rest, whomever it calls lost."""
    whole = cohort(count)
    for name in whole.members:
        assert {name, *whole.peers(name)} == {*whole.members}
        assert name not in whole.peers(name)


@pytest.mark.parametrize(
    ("threshold", "count", "expected"), [(2 / 3, 3, 2), (2 / 3, 4, 3), (0.7, 10, 7), (1.0, 5, 5)]
)
def test_the_threshold_is_rounded_up(threshold: float, count: int, expected: int) -> None:
    assert cohort(count, threshold).least == expected


@pytest.mark.parametrize("count", [2, 10, 1000])
def test_two_lists_without_a_site_in_common_are_never_both_enough(count: int) -> None:
    assert 2 * cohort(count, 0.5 + 1e-12).least > count


def test_too_many_sites_are_refused() -> None:
    with pytest.raises(SecureAggregationError, match=r"more than 1000.*strategy\.fraction"):
        cohort(MOST_SITES + 1)

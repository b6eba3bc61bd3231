"""Shares of a secret: enough of them give it back, fewer tell nothing."""

from __future__ import annotations

import itertools

import pytest
from hanse.secagg.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, join, split
from hypothesis import given, settings
from hypothesis import strategies as st

SECRET = bytes(range(SECRET_BYTES))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    secret=st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
    holders=st.integers(1, 40),
    data=st.data(),
)
def test_any_threshold_of_the_shares_give_the_secret_back(
    secret: bytes, holders: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, holders))
    shares = split(secret, holders=holders, threshold=threshold)
    chosen = data.draw(st.permutations(range(1, holders + 1)))[:threshold]
    assert join({at: shares[at - 1] for at in chosen}) == secret


def test_the_largest_secret_is_held() -> None:
    largest = b"\xff" * SECRET_BYTES
    shares = split(largest, holders=3, threshold=2)
    assert join({1: shares[0], 3: shares[2]}) == largest


def test_every_subset_of_the_threshold_will_do() -> None:
    shares = dict(enumerate(split(SECRET, holders=6, threshold=4), start=1))
    for chosen in itertools.combinations(shares, 4):
        assert join({at: shares[at] for at in chosen}) == SECRET


def test_fewer_shares_fit_any_secret() -> None:
    """With one share missing, each value of it leads to another secret: all are as likely."""
    shares = split(SECRET, holders=3, threshold=3)
    guesses = (value.to_bytes(SHARE_BYTES, "big") for value in range(50))
    found = set()
    for guess in guesses:
        try:
            found.add(join({1: shares[0], 2: shares[1], 3: guess}))
        except ValueError:  # one in 2^248 of the field's elements is no secret
            continue
    assert len(found) == 50


def test_the_same_secret_is_split_another_way_every_time() -> None:
    one, other = (split(SECRET, holders=3, threshold=2) for _ in range(2))
    assert not set(one) & set(other)


def test_too_few_shares_give_another_secret() -> None:
    shares = split(SECRET, holders=5, threshold=3)
    try:
        assert join({1: shares[0], 2: shares[1]}) != SECRET
    except ValueError as impossible:
        assert "not of one secret" in str(impossible)  # noqa: PT017


def test_what_is_no_share_is_refused() -> None:
    good = split(SECRET, holders=2, threshold=2)[0]
    for bad in (b"", good + b"\0", PRIME.to_bytes(SHARE_BYTES, "big")):
        with pytest.raises(ValueError, match="not an element"):
            join({1: good, 2: bad})


@pytest.mark.parametrize(("holders", "threshold"), [(3, 0), (3, 4), (0, 0)])
def test_an_impossible_threshold_is_refused(holders: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split(SECRET, holders=holders, threshold=threshold)


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        split(SECRET[1:], holders=3, threshold=2)


def test_the_field_is_one() -> None:
    """Miller and Rabin, for the first 20 primes."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71):
        value = pow(base, odd, PRIME)
        powers = {pow(value, 2**k, PRIME) for k in range(twos)}
        assert value == 1 or PRIME - 1 in powers

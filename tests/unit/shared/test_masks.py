"""Masks cancel in the sum, and fixed point loses half a step and no more."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hanse.errors import SecureAggregationError, UpdateRangeError
from hanse.secagg.fixed_point import FixedPoint
from hanse.secagg.masks import add_mask, agreed_key, is_negative, transcript
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = bytes(range(32))


def vector(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.random.default_rng(size).integers(0, 2**32, size, dtype=np.uint32)


@pytest.mark.parametrize("size", [0, 1, 3, 65_535, 65_536, 65_537, 200_001])
def test_a_mask_is_the_key_stream_of_aes(size: int) -> None:
    masked = np.zeros(size, dtype=np.uint32)
    add_mask(masked, KEY)
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(4 * size))
    assert masked.tobytes() == stream


@pytest.mark.parametrize("size", [0, 1, 65_537])
def test_a_mask_taken_away_leaves_what_was_there(size: int) -> None:
    before = vector(size)
    masked = before.copy()
    add_mask(masked, KEY)
    add_mask(masked, KEY, negative=True)
    assert np.array_equal(masked, before)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sites=st.integers(2, 7), size=st.integers(1, 300))
def test_pairwise_masks_cancel(sites: int, size: int) -> None:
    names = [f"site-{number}" for number in range(sites)]
    keys = {name: X25519PrivateKey.generate() for name in names}
    public = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    updates = {name: vector(size + at) for at, name in enumerate(names)}
    total, plain = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
    for name in names:
        masked = updates[name][:size].copy()
        plain += masked
        for peer in names:
            if peer != name:
                context = transcript("mask", *sorted((name.encode(), peer.encode())))
                key = agreed_key(keys[name], public[peer], context)
                add_mask(masked, key, negative=is_negative(name, peer))
        assert not np.array_equal(masked, updates[name][:size])
        total += masked
    assert np.array_equal(total, plain)


def test_a_key_is_bound_to_its_context() -> None:
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = other.public_key().public_bytes_raw()
    assert agreed_key(one, public, b"a") != agreed_key(one, public, b"b")


@pytest.mark.parametrize("public", [b"short", bytes(32)])
def test_a_key_with_which_nothing_is_agreed_is_refused(public: bytes) -> None:
    with pytest.raises(SecureAggregationError, match="unusable"):
        agreed_key(X25519PrivateKey.generate(), public, b"")


def test_transcripts_of_other_parts_differ() -> None:
    assert transcript("x", b"ab", b"c") != transcript("x", b"a", b"bc")
    assert transcript("x", b"a") != transcript("y", b"a")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    sites=st.integers(2, 1000),
    largest=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_sum_is_right_to_half_a_step_a_site(sites: int, largest: float, seed: int) -> None:
    fixed = FixedPoint(sites=sites, range=largest)
    summed = min(sites, 20)
    values = np.random.default_rng(seed).uniform(-largest, largest, (summed, 50))
    total = np.zeros(50, dtype=np.uint32)
    for each in values:
        total += fixed.encode(each)
    assert fixed.step <= largest * sites / 2**29 * 1.001
    error = np.abs(fixed.decode(total, summed) - values.sum(axis=0))
    assert error.max() <= summed * fixed.step / 2 * (1 + 1e-9)


@pytest.mark.parametrize("sites", [2, 3, 64, 10_000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sum_does_not_wrap(sites: int, sign: float) -> None:
    fixed = FixedPoint(sites=sites, range=3.7)
    total = fixed.encode(np.full(1, sign * 3.7)) * np.uint32(sites)
    assert fixed.decode(total, sites)[0] == pytest.approx(sign * 3.7 * sites, rel=1e-3)


@pytest.mark.parametrize("value", [8.001, -8.001, np.inf, np.nan])
def test_what_is_beyond_the_range_is_refused(value: float) -> None:
    with pytest.raises(UpdateRangeError, match="range = 8") as refused:
        FixedPoint(sites=4, range=8.0).encode(np.array([0.0, value]))
    assert refused.value.reason() == "update_range", "no value leaves the site"


def test_a_sum_under_a_wrong_mask_shows() -> None:
    fixed = FixedPoint(sites=4, range=8.0)
    total = np.zeros(200, dtype=np.uint32)
    add_mask(total, KEY)
    with pytest.raises(SecureAggregationError, match="beyond"):
        fixed.decode(total, 4)

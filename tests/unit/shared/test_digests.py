"""Digests of arrays: the same of what is sent and of what arrives, in whatever pieces."""

from __future__ import annotations

import pytest
import torch
from blake3 import blake3
from hanse import threads
from hanse.arrays import digest_of, parts_of, to_array, to_record
from hanse.digests import BodyHash, arrays_digest, digests_of
from hypothesis import given
from hypothesis import strategies as st


@given(
    arrays=st.lists(st.binary(max_size=20), max_size=6),
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_arrays_that_come_in_pieces_have_the_digest_of_those_that_were_sent(
    arrays: list[bytes], pieces: list[int]
) -> None:
    expected = blake3(b"".join(blake3(each).digest() for each in arrays))
    came, body, at = BodyHash(map(len, arrays)), b"".join(arrays), 0
    while at < len(body):
        size = pieces[at % len(pieces)]
        came.update(memoryview(body)[at : at + size])
        at += size

    assert came.digest() == expected.digest()


@pytest.mark.parametrize("body", [b"", b"ab", b"abcd", b"abcde"])
def test_a_body_that_is_cut_off_or_too_long_has_another_digest(body: bytes) -> None:
    whole, other = BodyHash([3, 0]), BodyHash([3, 0])
    whole.update(b"abc")
    other.update(body)

    assert other.digest() != whole.digest()


def test_where_one_array_ends_and_the_next_begins_counts() -> None:
    found = set()
    for sizes in ([4], [1, 3], [3, 1], [2, 2], [4, 0], [0, 4]):
        body = BodyHash(sizes)
        body.update(b"abcd")
        found.add(body.digest())
    assert len(found) == 6


@pytest.mark.parametrize("together", [1, 1 << 60])
def test_large_arrays_have_the_digest_of_their_bytes_whoever_hashes_them(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MANY_BYTES", together)
    sizes = (20_000, 16_384 * 3, 1, 0)
    arrays = [to_array(torch.randn(size)) for size in sizes]
    own = [blake3(b"".join(parts_of(array))).digest() for array in arrays]

    assert list(digests_of(arrays)) == own
    assert [digest_of(array) for array in arrays] == own


def test_a_record_of_tensors_has_the_digest_of_its_body() -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.empty(0, 2),
    }
    record = to_record(tensors)
    bodies = [b"".join(parts_of(array)) for array in record.values()]
    body = BodyHash(map(len, bodies))
    body.update(b"".join(bodies))

    assert arrays_digest(record.values()) == body.digest()


def test_an_array_of_a_tensor_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    array = to_array(torch.ones(5))
    first = digest_of(array)
    monkeypatch.setattr("hanse.arrays.parts_of", None)  # nobody looks at its bytes again

    assert digest_of(array) == first

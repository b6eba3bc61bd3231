"""A message put together from its chunks, however they were cut and wherever they broke off."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from hanse.errors import WireError
from hanse.flower import Envelope
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded, chunks, encode, make_header
from hypothesis import given, settings
from hypothesis import strategies as st

ENVELOPE = Envelope(
    message_id="a" * 32, run_id=7, src_node_id=1, dst_node_id=2, message_type="train"
)
blobs = st.lists(st.binary(max_size=40), max_size=6)


def message(bodies: list[bytes]) -> RecordDict:
    made = {str(n): Array("uint8", (len(b),), "raw", b) for n, b in enumerate(bodies)}
    return RecordDict({"arrays": ArrayRecord(made)})


def cut(body: bytes, at: list[int], start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The body from ``start`` on, cut at the places given."""
    places = sorted({start, len(body), *(place for place in at if start < place < len(body))})
    for begin, end in pairwise(places):
        yield begin, body[begin:end]


def whole(encoded: Encoded) -> bytes:
    return b"".join(encoded.body)


@settings(deadline=None)
@given(bodies=blobs, at=st.lists(st.integers(0, 240)))
def test_any_chunking_gives_the_same_message(bodies: list[bytes], at: list[int]) -> None:
    encoded = encode(message(bodies))
    assembler = Assembler(make_header(encoded, ENVELOPE), Limits())
    for offset, data in cut(whole(encoded), at):
        assert not assembler.complete
        assembler.add(offset, data)
    assert assembler.complete
    assert assembler.message().content == message(bodies)


@settings(deadline=None)
@given(bodies=blobs, breaks=st.lists(st.integers(0, 240), max_size=5), data=st.data())
def test_a_transfer_that_breaks_off_anywhere_goes_on_there(
    bodies: list[bytes], breaks: list[int], data: Any
) -> None:
    encoded = encode(message(bodies))
    body = whole(encoded)
    assembler = Assembler(make_header(encoded, ENVELOPE), Limits())
    for until in sorted(min(place, len(body)) for place in breaks):
        at = data.draw(st.lists(st.integers(0, 240), max_size=3))
        for offset, piece in cut(body[:until], at, assembler.received):
            assembler.add(offset, piece)
        again = Envelope(**vars(ENVELOPE) | {"created_at": float(until)})  # a restarted server's
        assert assembler.take_up(make_header(encoded, again), Limits())
        assert assembler.envelope == again
    for offset, piece in chunks(encoded, assembler.received):
        assembler.add(offset, piece)
    assert assembler.message().content == message(bodies)


@settings(deadline=None)
@given(bodies=blobs, start=st.integers(0, 250))
def test_chunks_from_anywhere_are_the_rest_of_the_body(bodies: list[bytes], start: int) -> None:
    encoded = encode(message(bodies))
    sent = list(chunks(encoded, start))
    assert b"".join(data for _, data in sent) == whole(encoded)[start:]
    assert all(offset == start for offset, _ in sent[:1])


@settings(deadline=None)
@given(bodies=blobs.filter(any), at=st.integers(0, 240), bit=st.integers(0, 7))
def test_a_bit_that_flips_on_the_way_shows(bodies: list[bytes], at: int, bit: int) -> None:
    encoded = encode(message(bodies))
    body = bytearray(whole(encoded))
    body[at % len(body)] ^= 1 << bit
    header = pb.Header.FromString(make_header(encoded, ENVELOPE).SerializeToString())
    assembler = Assembler(header, Limits())
    assembler.add(0, bytes(body))
    with pytest.raises(WireError, match="is not what its digest says"):
        assembler.message()

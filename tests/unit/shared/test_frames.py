"""Chunks and bodies written and read by hand are those of protocol buffers."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hanse.wire import hanse_pb2 as pb
from hanse.wire.frames import Chunk, Opening, deserializer, header_of, serialize
from hypothesis import example, given
from hypothesis import strategies as st

KINDS = [pb.SiteFrame, pb.ServerFrame]
ids, offsets = st.text(max_size=40), st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("kind", KINDS)
@given(name=ids, offset=offsets, parts=st.lists(st.binary(max_size=300), max_size=4))
@example(name="a" * 32, offset=1 << 20, parts=[bytes(1 << 20)])
@example(name="", offset=0, parts=[])
def test_a_chunk_is_written_as_protocol_buffers_read_it(
    kind: type[pb.SiteFrame], name: str, offset: int, parts: list[bytes]
) -> None:
    written = serialize(Chunk(name, offset, tuple(map(memoryview, parts))))

    read = kind.FromString(written)
    assert read.WhichOneof("kind") == "chunk"
    assert (read.chunk.message_id, read.chunk.offset) == (name, offset)
    assert read.chunk.data == b"".join(parts)
    again = deserializer(kind)(written)
    assert isinstance(again, Chunk | pb.SiteFrame | pb.ServerFrame)
    assert again.chunk.data == b"".join(parts)


@pytest.mark.parametrize("kind", KINDS)
@given(name=st.text(min_size=1, max_size=40), offset=offsets, data=st.binary(min_size=1))
def test_a_chunk_is_read_as_protocol_buffers_write_it(
    kind: type[pb.SiteFrame], name: str, offset: int, data: bytes
) -> None:
    frame = kind(chunk=pb.Chunk(message_id=name, offset=offset, data=data))
    packed = frame.SerializeToString()

    read = deserializer(kind)(packed)

    assert isinstance(read, Chunk)
    assert read.WhichOneof("kind") == "chunk"
    assert (read.message_id, read.offset, read.data) == (name, offset, data)
    assert isinstance(read.data, memoryview)
    assert read.data.obj is packed  # nothing was copied
    assert serialize(read) == packed


headers = st.builds(
    pb.Header,
    envelope=st.binary(max_size=20),
    content=st.binary(max_size=200),
    body_size=offsets,
    digest=st.binary(max_size=32),
    inline=offsets,
)


@pytest.mark.parametrize("kind", KINDS)
@given(header=headers, parts=st.lists(st.binary(max_size=300), max_size=4))
@example(header=pb.Header(inline=1), parts=[bytes(1 << 20)])
def test_a_body_is_written_behind_its_header_as_protocol_buffers_read_it(
    kind: type[pb.SiteFrame], header: pb.Header, parts: list[bytes]
) -> None:
    written = serialize(Opening(header, tuple(map(memoryview, parts))))

    read = kind.FromString(written)
    assert read.WhichOneof("kind") == "header"
    for frame in (read, deserializer(kind)(written)):
        found, body = header_of(frame)
        assert body == b"".join(parts)
        assert found == header


@pytest.mark.parametrize("kind", KINDS)
@given(header=headers, body=st.binary(min_size=1))
def test_a_body_is_read_where_it_lies_if_it_is_the_last_of_its_header(
    kind: type[pb.SiteFrame], header: pb.Header, body: bytes
) -> None:
    whole = pb.Header()
    whole.CopyFrom(header)
    whole.body = body
    packed = kind(header=whole).SerializeToString()

    read = deserializer(kind)(packed)

    assert isinstance(read, Opening) is (header.inline == 0)  # which would be behind it
    assert read.WhichOneof("kind") == "header"
    found, came = header_of(read)
    assert (found, bytes(came)) == (header, body)
    if isinstance(read, Opening):
        assert isinstance(read.data, memoryview)
        assert read.data.obj is packed  # nothing was copied
        assert serialize(read) == packed


FIELDS = [
    *(b"\x0a\x01a", b"\x12\x00", b"\x18\x05", b"\x22\x02xy", b"\x2a\x01b", b"\x30\x07"),
    *(b"\xc2\x3e\x01n", b"\x41" + bytes(8), b"\x45" + bytes(4), b"\x43\x44", b"\x2a\x05b"),
]


def framed(tag: bytes, parts: list[bytes], more: int = 0) -> bytes:
    """A field of so many bytes, or of a few ``more`` than there are."""
    inner = b"".join(parts)
    return tag + bytes([max(0, len(inner) + more)]) + inner


@given(
    data=st.binary(max_size=60)
    | st.builds(
        lambda head, rest: framed(b"\x1a", [head, rest]),
        st.sampled_from([b"\x0a\x01a", b"\x0a\x01a\x10\x05", b"\x1a\x01x", b"\x0a\x01\xff"]),
        st.sampled_from([b"\x1a\x01x", b"\x1a\x01x\x1a\x01y", b"\x10\xff", b"\x22\x01x", b""]),
    )
    | st.builds(
        framed,
        st.just(b"\x12"),
        st.lists(st.sampled_from(FIELDS), max_size=6),
        st.integers(-1, 1),
    )
)
@example(data=b"\x1a\x0f\x0a\x01a\x10" + b"\xff" * 9 + b"\x7f")
@example(data=framed(b"\x12", [b"\x2a\x01b", b"\x2a\x01c"]))
@example(data=framed(b"\x12", [b"\xc2\x3e\x01n", b"\x41" + bytes(8), b"\x2a\x01b"]))
def test_what_is_written_otherwise_is_read_as_protocol_buffers_do(data: bytes) -> None:
    try:
        expected = pb.SiteFrame.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            deserializer(pb.SiteFrame)(data)
        return
    read = deserializer(pb.SiteFrame)(data)
    assert read.WhichOneof("kind") == expected.WhichOneof("kind")
    if isinstance(read, Chunk):
        told = (read.message_id, read.offset, bytes(read.data))
        assert told == (expected.chunk.message_id, expected.chunk.offset, expected.chunk.data)
    elif isinstance(read, Opening):
        (found, came), (meant, body) = header_of(read), header_of(expected)
        assert (found, bytes(came)) == (meant, body)


@pytest.mark.parametrize("kind", KINDS)
def test_other_frames_are_left_to_protocol_buffers(kind: type[pb.SiteFrame]) -> None:
    frame = kind(goodbye=pb.Goodbye(reason="stopping", retry=True))
    assert deserializer(kind)(serialize(frame)) == frame

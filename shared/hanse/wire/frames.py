"""Frames as gRPC gets them: bodies and pieces of them by hand, all else by protocol buffers.

Bodies are most of what travels. As protocol buffers their bytes would be copied three times on
each side; here they are copied once on the way out and not at all on the way in. The bytes on the
wire are those of ``Chunk`` and ``Header`` in hanse.proto, in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from google.protobuf.message import DecodeError

from hanse.parts import Data
from hanse.wire import hanse_pb2 as pb

F = TypeVar("F", pb.SiteFrame, pb.ServerFrame)

# Tags: of a frame's field, of a chunk's, of a header's.
_HEADER, _CHUNK = 0x12, 0x1A
_ID, _OFFSET, _DATA = 0x0A, 0x10, 0x1A
_BODY = 0x2A
_LONGEST_VARINT = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the lower bits of a tag


class _Bytes:
    """Bytes in parts; what is to be sent may lie in several places."""

    __slots__ = ()
    parts: tuple[memoryview | bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of it."""
        return sum(map(len, self.parts))

    @property
    def data(self) -> memoryview | bytes:
        """Its bytes in one."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


@dataclass(frozen=True, slots=True)
class Chunk(_Bytes):
    """A piece of a body, to be read as a frame whose chunk it is.

    Attributes:
        message_id: of the instruction that is sent, or answered.
        offset: in the body.
        parts: its bytes.
    """

    message_id: str
    offset: int
    parts: tuple[memoryview | bytes, ...]

    @property
    def chunk(self) -> Self:
        """The frame's only field."""
        return self

    def WhichOneof(self, group: str) -> str:  # noqa: N802 - as protocol buffers call it
        """The name of the frame's only field."""
        return "chunk"


@dataclass(frozen=True, slots=True)
class Opening(_Bytes):
    """A header, to be read as a frame whose header it is.

    Attributes:
        header: without the body.
        parts: the bytes of the whole body of its message, or none.
    """

    header: pb.Header
    parts: tuple[memoryview | bytes, ...] = ()

    def WhichOneof(self, group: str) -> str:  # noqa: N802 - as protocol buffers call it
        """The name of the frame's only field."""
        return "header"


def header_of(frame: Any) -> tuple[pb.Header, Data]:
    """The header that a frame is of, and the body that came with it, if any.

    Args:
        frame: of kind ``header``.
    """
    header: pb.Header = frame.header
    if isinstance(frame, Opening):
        return header, frame.data
    body = header.body  # each look at it is a copy
    header.ClearField("body")
    return header, body


def serialize(frame: pb.SiteFrame | pb.ServerFrame | Chunk | Opening) -> bytes:
    """A frame as its bytes."""
    if isinstance(frame, Opening):
        inner = frame.header.SerializeToString()
        if frame.size:
            inner += bytes((_BODY,)) + _varint(frame.size)
        return _joined(_HEADER, inner, frame)
    if isinstance(frame, Chunk):
        name = frame.message_id.encode()
        inner = bytes((_ID,)) + _varint(len(name)) + name
        if frame.offset:
            inner += bytes((_OFFSET,)) + _varint(frame.offset)
        inner += bytes((_DATA,)) + _varint(frame.size)
        return _joined(_CHUNK, inner, frame)
    return frame.SerializeToString()


def _joined(tag: int, inner: bytes, frame: _Bytes) -> bytes:
    head = bytes((tag,)) + _varint(len(inner) + frame.size) + inner
    return b"".join((head, *frame.parts))


def deserializer(kind: type[F]) -> Callable[[bytes], F | Chunk | Opening]:
    """What makes frames of their bytes: of ``kind``, or a chunk or a body over them.

    What another software has written in another order is read by protocol buffers.
    """

    def deserialize(data: bytes) -> F | Chunk | Opening:
        read = _BY_HAND.get(data[0]) if data else None
        found = read(memoryview(data)) if read is not None else None
        return kind.FromString(data) if found is None else found

    return deserialize


def _chunk(data: memoryview) -> Chunk | None:
    """The one chunk that ``data`` is; None if it is written in another way than above."""
    try:
        size, at = _read_varint(data, 1)
        if at + size != len(data) or data[at] != _ID:
            return None
        size, at = _read_varint(data, at + 1)
        name, at = bytes(data[at : at + size]).decode(), at + size
        offset = 0
        if data[at] == _OFFSET:
            offset, at = _read_varint(data, at + 1)
        if data[at] != _DATA:
            return None
        size, at = _read_varint(data, at + 1)
    except (IndexError, UnicodeDecodeError):
        return None
    return Chunk(name, offset, (data[at:],)) if at + size == len(data) else None


def _opening(data: memoryview) -> Opening | None:
    """The one header that ``data`` is, whose body is the last of it; None if it is not so."""
    try:
        size, start = _read_varint(data, 1)
        if start + size != len(data):
            return None
        at = start
        while data[at] != _BODY:
            at = _behind(data, at)
        size, body = _read_varint(data, at + 1)
        if body + size != len(data):
            return None
        return Opening(pb.Header.FromString(bytes(data[start:at])), (data[body:],))
    except (IndexError, DecodeError):
        return None


def _behind(data: memoryview, at: int) -> int:
    """The byte behind the field whose tag is at ``at``.

    Raises:
        IndexError: if it is of no kind that there is in the contract.
    """
    kind = data[at] & 7
    _, at = _read_varint(data, at)
    if kind == _BYTES:
        size, at = _read_varint(data, at)
        return at + size
    if kind == _VARINT:
        return _read_varint(data, at)[1]
    if kind in (_FIXED64, _FIXED32):
        return at + (8 if kind == _FIXED64 else 4)
    raise IndexError(at)


_BY_HAND: dict[int, Callable[[memoryview], Chunk | Opening | None]] = {
    _HEADER: _opening,
    _CHUNK: _chunk,
}


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number and where it ends.

    Raises:
        IndexError: if it does not end in time.
    """
    value = 0
    for position in range(_LONGEST_VARINT):
        byte = data[at + position]
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, at + position + 1
    raise IndexError(at)

"""Frames as gRPC gets them: pieces of a body by hand, all others by protocol buffers.

A piece is most of what travels. As a protocol buffer its bytes would be copied three times on
each side; here they are copied once on the way out and not at all on the way in. The bytes on the
wire are those of ``Chunk`` in hanse.proto, in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from hanse.wire import hanse_pb2 as pb

F = TypeVar("F", pb.SiteFrame, pb.ServerFrame)

_CHUNK, _ID, _OFFSET, _DATA = 0x1A, 0x0A, 0x10, 0x1A  # tags: of the frame's field, of the chunk's
_LONGEST_VARINT = 10


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a body, to be read as a frame whose chunk it is.

    Attributes:
        message_id: of the instruction that is sent, or answered.
        offset: in the body.
        parts: its bytes; what is to be sent may lie in several places.
    """

    message_id: str
    offset: int
    parts: tuple[memoryview | bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of it."""
        return sum(map(len, self.parts))

    @property
    def data(self) -> memoryview | bytes:
        """Its bytes in one."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    @property
    def chunk(self) -> Self:
        """The frame's only field."""
        return self

    def WhichOneof(self, group: str) -> str:  # noqa: N802 - as protocol buffers call it
        """The name of the frame's only field."""
        return "chunk"


def serialize(frame: pb.SiteFrame | pb.ServerFrame | Chunk) -> bytes:
    """A frame as its bytes."""
    if not isinstance(frame, Chunk):
        return frame.SerializeToString()
    name = frame.message_id.encode()
    inner = bytes((_ID,)) + _varint(len(name)) + name
    if frame.offset:
        inner += bytes((_OFFSET,)) + _varint(frame.offset)
    inner += bytes((_DATA,)) + _varint(frame.size)
    head = bytes((_CHUNK,)) + _varint(len(inner) + frame.size) + inner
    return b"".join((head, *frame.parts))


def deserializer(kind: type[F]) -> Callable[[bytes], F | Chunk]:
    """What makes frames of their bytes: of ``kind``, or a chunk over them.

    A chunk that another software has written in another order is read by protocol buffers.
    """

    def deserialize(data: bytes) -> F | Chunk:
        if data[:1] == bytes((_CHUNK,)) and (chunk := _chunk(memoryview(data))) is not None:
            return chunk
        return kind.FromString(data)

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

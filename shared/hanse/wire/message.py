"""A message on its way out: encoded once, sent to one site or to thousands."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate

from blake3 import blake3
from flwr.app import Error as FlowerError
from flwr.app import RecordDict
from google.protobuf.message import DecodeError

from hanse.arrays import parts_of
from hanse.digests import arrays_digest
from hanse.errors import WireError
from hanse.flower import Envelope
from hanse.wire import hanse_pb2 as pb
from hanse.wire.content import arrays_of, describe

CHUNK_BYTES = 1 << 20

INLINE_BYTES = CHUNK_BYTES
"""Bytes of a body up to which it may travel in the header: one frame instead of two, and instead of
a round trip where it would have to be asked for."""


@dataclass(frozen=True)
class Encoded:
    """A content as it travels, whoever it goes to.

    Attributes:
        content: the serialised description.
        body: the bytes of its arrays, each as it lies in the array: nothing is copied.
        digest: BLAKE3 of description and body.
    """

    content: bytes
    body: tuple[memoryview, ...]
    digest: bytes

    @cached_property
    def body_size(self) -> int:
        """Bytes of all arrays."""
        return sum(map(len, self.body))

    def piece(self, offset: int, most: int) -> tuple[memoryview, ...]:
        """At most ``most`` bytes of the body from ``offset`` on, in the parts in which they lie."""
        pieces = []
        for part in range(bisect_right(self._starts, offset) - 1, len(self.body)):
            begin = offset - self._starts[part]
            piece = self.body[part][begin : begin + most]
            if piece:
                pieces.append(piece)
                offset, most = offset + len(piece), most - len(piece)
            if not most:
                break
        return tuple(pieces)

    @cached_property
    def _starts(self) -> list[int]:
        """The bytes at which the parts of the body begin."""
        return list(accumulate(map(len, self.body[:-1]), initial=0))


def encode(content: RecordDict | FlowerError) -> Encoded:
    """Encode a content.

    Raises:
        WireError: if it holds what the wire cannot carry.
    """
    description = describe(content).SerializeToString(deterministic=True)
    arrays = list(arrays_of(content))
    body = tuple(part for array in arrays for part in parts_of(array))
    return Encoded(description, body, content_digest(description, arrays_digest(arrays)))


def make_header(encoded: Encoded, envelope: Envelope, *, inline: int = 0) -> pb.Header:
    """The header under which a content goes to one site, without its body.

    Args:
        inline: of an instruction: bytes of a body that the header of its reply may hold.
    """
    packed = pb.Envelope(**asdict(envelope)).SerializeToString()
    return pb.Header(
        envelope=packed,
        content=encoded.content,
        body_size=encoded.body_size,
        digest=message_digest(packed, encoded.digest),
        inline=inline,
    )


def chunks(encoded: Encoded, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The body from byte ``start`` on, as (offset, at most 1 MiB) pairs."""
    for offset in range(start, encoded.body_size, CHUNK_BYTES):
        yield offset, b"".join(encoded.piece(offset, CHUNK_BYTES))


def content_digest(content: bytes, body_digest: bytes) -> bytes:
    """The digest of a content, by that of its arrays: it is computed once, for the trails too."""
    return blake3(len(content).to_bytes(8, "big") + content + body_digest).digest()


def message_digest(envelope: bytes, content: bytes) -> bytes:
    """The digest of a whole message, by that of its content."""
    return blake3(envelope + content).digest()


def unpack(packed: bytes) -> Envelope:
    """The envelope that a header carries.

    Raises:
        WireError: if it is malformed.
    """
    try:
        envelope = pb.Envelope.FromString(packed)
    except DecodeError as malformed:
        raise WireError("an envelope is malformed") from malformed
    return Envelope(
        **{field.name: getattr(envelope, field.name) for field in pb.Envelope.DESCRIPTOR.fields}
    )

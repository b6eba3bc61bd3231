"""Messages and the states of sites as bytes, for engines whose workers are elsewhere.

The frames are those of the wire. What workers on other machines hand back, and what is handed
to them, is this alone: no message is pickled.
"""

from __future__ import annotations

from flwr.app import Message, RecordDict
from hanse.errors import WireError
from hanse.flower import Envelope
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded, encode, make_header

LIMITS = Limits(max_body_bytes=1 << 50, max_header_bytes=1 << 31)


def header_of(encoded: Encoded, message: Message) -> bytes:
    """The header under which the content of ``message`` goes."""
    envelope = Envelope.of(message, message.metadata.message_id)
    return make_header(encoded, envelope).SerializeToString()


def body_of(encoded: Encoded) -> bytes:
    """The bytes of all arrays of a content."""
    return b"".join(encoded.body)


def pack(message: Message) -> tuple[bytes, bytes]:
    """A message as its header and its body."""
    encoded = encode(message.error if message.has_error() else message.content)
    return header_of(encoded, message), body_of(encoded)


def unpack(header: bytes, body: bytes) -> Message:
    """The message that :func:`pack` was given.

    Raises:
        WireError: if these are not its header and its body.
    """
    assembler = Assembler(pb.Header.FromString(header), LIMITS)
    assembler.add(0, body)
    return assembler.message()


def pack_state(state: RecordDict) -> bytes:
    """The state of a site's context."""
    encoded = encode(state)
    header = make_header(encoded, _STATE).SerializeToString()
    return b"".join([len(header).to_bytes(8, "big"), header, body_of(encoded)])


def unpack_state(packed: bytes) -> RecordDict:
    """The state that :func:`pack_state` was given.

    Raises:
        WireError: if this is none.
    """
    end = 8 + int.from_bytes(packed[:8], "big")
    content = unpack(packed[8:end], packed[end:]).content
    if not isinstance(content, RecordDict):
        raise WireError("the state of a site holds no records")
    return content


_STATE = Envelope(
    message_id="", run_id=0, src_node_id=0, dst_node_id=0, message_type="query", ttl=1.0
)

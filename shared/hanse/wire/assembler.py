"""A message on its way in: held against the limits first, then put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flwr.app import Error as FlowerError
from flwr.app import Message
from google.protobuf.message import DecodeError

from hanse.digests import BodyHash
from hanse.errors import WireError
from hanse.flower import Envelope, open_envelope
from hanse.parts import Data, Part
from hanse.wire import hanse_pb2 as pb
from hanse.wire.body import Body, Spool
from hanse.wire.content import descriptors, restore
from hanse.wire.limits import Limits
from hanse.wire.message import INLINE_BYTES, content_digest, message_digest, unpack


class Assembler:
    """Takes the body of one message: out of its header, or chunk by chunk in their order.

    Memory is taken as bytes arrive, never for what is only declared.

    Args:
        header: of the message.
        limits: what it is held against.
        spool: for bodies that are not small; None to keep every body in memory.
        body: the whole of it, if it came with the header.

    Raises:
        WireError: if the header is malformed, contradicts itself or passes a limit.
    """

    def __init__(
        self, header: pb.Header, limits: Limits, spool: Spool | None = None, body: Data = b""
    ) -> None:
        self._header = header
        self.envelope = check_envelope(header, limits)
        self._content = _check_content(header, limits, len(body))
        self._hash = BodyHash(array.size for array in descriptors(self._content))
        self._body = Body(header.body_size, spool)
        self.received = 0
        if body:
            self.add(0, body)

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        return self._header.body_size

    @property
    def digest(self) -> bytes:
        """What the header says that the whole message has as its digest."""
        return self._header.digest

    @property
    def inline(self) -> int:
        """Bytes of a body that the header of the reply may hold."""
        return min(self._header.inline, INLINE_BYTES)

    def arrays_digest(self) -> str | None:
        """Of all arrays, in hexadecimal; None of a message without any."""
        return self._hash.digest().hex() if any(descriptors(self._content)) else None

    @property
    def complete(self) -> bool:
        """Whether the whole body is there."""
        return self.received == self.size

    def take_up(self, header: pb.Header, limits: Limits) -> bool:
        """Go on under ``header``, if it announces the same content again.

        Its envelope replaces the one before: a server that was restarted dates it anew.
        """
        if header.content != self._header.content or header.body_size != self.size:
            return False
        self.envelope = check_envelope(header, limits)
        self._header = header
        return True

    def add(self, offset: int, data: Data) -> None:
        """Take the next chunk.

        Raises:
            WireError: if it is not the next one, or passes the declared size.
            WorkspaceError: if the spool has no room for it.
        """
        if offset != self.received or offset + len(data) > self.size:
            raise WireError(
                f"message {self.envelope.message_id}: chunk {offset}+{len(data)} does not go on "
                f"from byte {self.received} of {self.size}"
            )
        self._body.add(offset, data)
        self._hash.update(data)
        self.received += len(data)

    def message(self) -> Message:
        """The message, once it is complete; its arrays lie in the body, and nothing is copied.

        Raises:
            WireError: if it is not, its digest differs, or Flower does not accept a value.
        """
        name = self.envelope.message_id
        if not self.complete:
            raise WireError(f"message {name} ends at byte {self.received} of {self.size}")
        content = content_digest(self._header.content, self._hash.digest())
        if message_digest(self._header.envelope, content) != self._header.digest:
            raise WireError(f"message {name} is not what its digest says: it changed on the way")
        return open_envelope(self.envelope, restore(self._content, self._arrays()))

    def _arrays(self) -> Iterator[Part]:
        start = 0
        for array in descriptors(self._content):
            yield self._body.part(start, array.size)
            start += array.size


def check_envelope(header: pb.Header, limits: Limits) -> Envelope:
    """The envelope of a message that may otherwise be refused.

    Raises:
        WireError: if it is malformed.
    """
    envelope = unpack(header.envelope)
    texts = (envelope.message_id, envelope.reply_to, envelope.group_id, envelope.message_type)
    _check_names("envelope", texts, limits)
    try:
        open_envelope(envelope, FlowerError(0))
    except ValueError as refused:
        raise WireError(f"an envelope is malformed: {refused}") from refused
    return envelope


def _check_content(header: pb.Header, limits: Limits, inline: int) -> pb.Content:
    size = len(header.content) + len(header.envelope)
    if size > limits.max_header_bytes:
        raise WireError(f"a header of {size} bytes passes the limit, {limits.max_header_bytes}")
    if header.body_size > limits.max_body_bytes:
        raise WireError(
            f"a body of {header.body_size} bytes passes the limit, {limits.max_body_bytes}"
        )
    try:
        content = pb.Content.FromString(header.content)
    except DecodeError as malformed:
        raise WireError("a header is malformed") from malformed
    if content.WhichOneof("kind") is None:
        raise WireError("a header has neither records nor an error")
    _check_records(content.records, limits)
    declared = sum(array.size for array in descriptors(content))
    if declared != header.body_size:
        raise WireError(
            f"the arrays of a message declare {declared} bytes, its header {header.body_size}"
        )
    if inline not in (0, header.body_size):
        raise WireError(f"a header holds {inline} bytes of {header.body_size}")
    if inline > INLINE_BYTES:
        raise WireError(f"a header holds {inline} bytes: the most are {INLINE_BYTES}")
    return content


def _check_records(records: pb.Records, limits: Limits) -> None:
    _check_count("records", len(records.records), limits.max_records)
    _check_count("arrays", sum(len(r.arrays.arrays) for r in records.records), limits.max_arrays)
    _check_distinct("records", (record.name for record in records.records), limits)
    for record in records.records:
        values = record.metrics.values or record.config.values
        _check_distinct("values", (value.name for value in values), limits)
        _check_distinct("arrays", (array.name for array in record.arrays.arrays), limits)
        for array in record.arrays.arrays:
            _check_names("array", (array.dtype, array.stype), limits)
            _check_count("dimensions", len(array.shape), limits.max_dimensions)


def _check_count(what: str, number: int, most: int) -> None:
    if number > most:
        raise WireError(f"{number} {what} pass the limit, {most}")


def _check_distinct(what: str, names: Iterable[str], limits: Limits) -> None:
    names = list(names)
    if len(set(names)) != len(names):
        raise WireError(f"two {what} of a message have the same name")
    _check_names(what, names, limits)


def _check_names(what: str, names: Iterable[str], limits: Limits) -> None:
    for name in names:
        if len(name) > limits.max_name_length:
            raise WireError(
                f"{what}: a name of {len(name)} characters passes the limit, "
                f"{limits.max_name_length}"
            )

"""How large a reply may be, by what was asked."""

from __future__ import annotations

import math
from dataclasses import replace

from flwr.app import Array, Message, MessageType
from hanse.flower import only_arrays, size_of
from hanse.wire.limits import Limits
from hanse.wire.message import Encoded

HEADER_ROOM = 64 * 1024
"""Bytes of a reply's header beyond those of what was asked: a hundred metrics, a reason."""

ARRAY_ROOM = 256
"""Bytes that numpy's own header of an array takes, and some more."""

WORD = 4
"""Bytes of a number of a masked update."""


def reply_limits(asked: Message, encoded: Encoded, limits: Limits) -> Limits:
    """What a site of Hanse may answer: an update of the model that was sent, or no array at all.

    An update is of the weights' dtype, or in a secure round of 32-bit numbers.

    Args:
        encoded: the content of ``asked``.
        limits: bounds that hold in any case.
    """
    header = min(limits.max_header_bytes, len(encoded.content) + HEADER_ROOM)
    if asked.metadata.message_type != MessageType.TRAIN:
        return replace(limits, max_body_bytes=0, max_arrays=0, max_header_bytes=header)
    model = only_arrays(asked.content)
    body = sum(map(_update_bytes, model.values()))
    return replace(
        limits,
        max_body_bytes=min(limits.max_body_bytes, body),
        max_arrays=min(limits.max_arrays, len(model)),
        max_header_bytes=header,
    )


def _update_bytes(array: Array) -> int:
    return max(size_of(array), WORD * math.prod(array.shape)) + ARRAY_ROOM

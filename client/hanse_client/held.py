"""The replies that wait in the outbox, held against the trail: nothing is to leave untold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from hanse.errors import LedgerBrokenError
from hanse.wire import hanse_pb2 as pb

from hanse_client.outbox import Held


def verify_held(waiting: Iterable[Held], lines: Iterable[Mapping[str, Any]]) -> int:
    """Check that the trail tells of each reply in the outbox, with its digest.

    Of errors it need not tell: those of the link itself hold nothing of the site.

    Args:
        waiting: what was in the outbox before ``lines`` were read.

    Returns:
        How many replies there are.

    Raises:
        LedgerBrokenError: naming the first reply that the trail does not tell of, or not so.
    """
    released: dict[str, tuple[str | None, int]] = {}
    for line in lines:
        if line.get("event") == "released":
            released[line["id"]] = line.get("blake3"), line.get("bytes", 0)  # the last one is kept
    count = 0
    for held in waiting:
        count += 1
        if _is_error(held):
            continue
        told = released.get(held.instruction)
        if told is None:
            raise LedgerBrokenError(
                f"the outbox holds a reply to {held.instruction}, and the audit trail does not "
                "tell that it was let out"
            )
        if told != (held.blake3 if told[0] else None, held.bytes):
            raise LedgerBrokenError(
                f"the reply to {held.instruction} in the outbox is not the one that the audit "
                "trail tells of"
            )
    return count


def _is_error(held: Held) -> bool:
    try:
        header = pb.Header.FromString(held.header)
        return pb.Content.FromString(header.content).WhichOneof("kind") == "error"
    except DecodeError as damaged:
        raise LedgerBrokenError(
            f"the reply to {held.instruction} in the outbox is damaged"
        ) from damaged

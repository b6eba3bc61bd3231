"""What waits in the outbox is what the trail says was let out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType
from hanse.errors import LedgerBrokenError, PolicyError
from hanse.flower import ARRAYS, error_reply
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import encode
from hanse_client.audit import read_audit
from hanse_client.held import verify_held
from hanse_client.outbox import Outbox

from tests.harbour import Harbour, job, site


@pytest.fixture
def here(tmp_path: Path) -> Harbour:
    return Harbour(tmp_path, site(tmp_path))


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path / "outbox.sqlite")
    yield opened
    opened.close()


def put(outbox: Outbox, name: str, reply: Message) -> None:
    encoded = encode(reply.error if reply.has_error() else reply.content)
    header = pb.Header(content=encoded.content, body_size=encoded.body_size)
    outbox.put(name, header.SerializeToString(), encoded.body)


def held(tmp_path: Path, here: Harbour) -> int:
    waiting = list(Outbox.look_into(tmp_path / "outbox.sqlite"))
    return verify_held(waiting, read_audit(here.audit))


def test_what_was_let_out_is_told(here: Harbour, outbox: Outbox, tmp_path: Path) -> None:
    put(outbox, "a", here.send(job(), name="a"))
    put(outbox, "b", here.send(job(), name="b", kind=MessageType.EVALUATE))
    asked = here.send(job(), name="c")
    put(outbox, "c", error_reply(PolicyError("no"), asked))
    assert held(tmp_path, here) == 3  # while the client has it open


def test_a_reply_that_the_trail_does_not_know_is_found(
    here: Harbour, outbox: Outbox, tmp_path: Path
) -> None:
    put(outbox, "b", here.send(job(), name="a"))
    with pytest.raises(LedgerBrokenError, match="holds a reply to b, and the audit trail does not"):
        held(tmp_path, here)


def test_another_reply_than_was_let_out_is_found(
    here: Harbour, outbox: Outbox, tmp_path: Path
) -> None:
    reply = here.send(job(), name="a")
    update = reply.content.array_records[ARRAYS]
    name = next(iter(update))
    array = update[name]
    data = array.data[:-1] + bytes([array.data[-1] ^ 1])
    changed = Array(array.dtype, tuple(array.shape), array.stype, data)
    reply.content[ARRAYS] = ArrayRecord({**dict(update.items()), name: changed})
    put(outbox, "a", reply)
    with pytest.raises(LedgerBrokenError, match="reply to a in the outbox is not the one"):
        held(tmp_path, here)


def test_a_damaged_reply_is_found(here: Harbour, outbox: Outbox, tmp_path: Path) -> None:
    outbox.put("a", b"\xff\xff", [])
    with pytest.raises(LedgerBrokenError, match="reply to a in the outbox is damaged"):
        held(tmp_path, here)

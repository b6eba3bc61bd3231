"""Bodies in memory and in the spool are the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from hanse.arrays import Data, Part, only_arrays, read_tensor, to_array
from hanse.errors import WorkspaceError
from hanse.flower import Envelope
from hanse.wire import body as bodies
from hanse.wire.assembler import Assembler
from hanse.wire.body import Body
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, encode, make_header

WHOLE = bytes(range(256)) * 100
ENVELOPE = Envelope(message_id="a", run_id=1, src_node_id=1, dst_node_id=2, message_type="train")


@pytest.fixture(params=["in memory", "in the spool"])
def spool(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    monkeypatch.setattr(bodies, "IN_MEMORY", 100)
    return tmp_path if request.param == "in the spool" else None


def got(part: Part) -> Data:
    return part() if callable(part) else part


def test_each_part_is_what_came(spool: Path | None) -> None:
    body = Body(len(WHOLE), spool)
    for offset in range(0, len(WHOLE), 999):
        body.add(offset, memoryview(WHOLE)[offset : offset + 999])

    for start, size in ((0, len(WHOLE)), (5000, 1), (4095, 9000), (77, 0), (len(WHOLE), 0)):
        assert bytes(got(body.part(start, size))) == WHOLE[start : start + size]
    assert spool is None or list(spool.iterdir()) == []  # the file has no name


def test_what_is_written_to_a_part_stays_there(spool: Path | None) -> None:
    body = Body(len(WHOLE), spool)
    body.add(0, WHOLE)
    part = memoryview(got(body.part(0, 500)))
    part[0] = 99
    assert part[0] == 99
    if spool is not None:
        assert bytes(got(body.part(0, 500))) == WHOLE[:500]


def test_tensors_are_read_where_they_lie(spool: Path | None) -> None:
    tensors = {"a": torch.randn(30, 7), "b": torch.randn(3).bfloat16(), "c": torch.tensor(2)}
    arrays = ArrayRecord()
    for name, tensor in tensors.items():
        arrays[name] = to_array(tensor)
    encoded = encode(RecordDict({"arrays": arrays}))
    assembler = Assembler(make_header(encoded, ENVELOPE), Limits(), spool)
    for offset, data in chunks(encoded):
        assembler.add(offset, data)

    content = assembler.message().content

    assert content == RecordDict({"arrays": arrays})
    for name, array in only_arrays(content).items():
        assert torch.equal(read_tensor(array), tensors[name])


def test_a_full_spool_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IN_MEMORY", 100)
    body = Body(len(WHOLE), tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        with pytest.raises(WorkspaceError, match="No space left"):
            body.add(0, WHOLE)
    body.add(0, WHOLE)  # the same piece again, once there is room
    assert bytes(got(body.part(0, len(WHOLE)))) == WHOLE


def test_a_spool_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="gone"):
        Body(bodies.IN_MEMORY + 1, tmp_path / "gone")

"""Bodies in memory and in the spool are the same bytes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from hanse.arrays import only_arrays, read_tensor, to_array
from hanse.errors import WorkspaceError
from hanse.flower import Envelope
from hanse.parts import Data, Part, in_memory
from hanse.wire import body as bodies
from hanse.wire.assembler import Assembler
from hanse.wire.body import Body, Spool
from hanse.wire.limits import Limits
from hanse.wire.message import chunks, encode, make_header

WHOLE = bytes(range(256)) * 100
ENVELOPE = Envelope(message_id="a", run_id=1, src_node_id=1, dst_node_id=2, message_type="train")


@pytest.fixture(params=["in memory", "in the spool"])
def spool(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Spool | None:
    monkeypatch.setattr(bodies, "IN_MEMORY", 100)
    return Spool(tmp_path) if request.param == "in the spool" else None


def body_of(data: Data, spool: Spool | None) -> Body:
    body = Body(len(data), spool)
    body.add(0, data)
    return body


def bytes_at(part: Part) -> bytes:
    return bytes(in_memory(part))


def test_each_part_is_what_came(spool: Spool | None, tmp_path: Path) -> None:
    body = Body(len(WHOLE), spool)
    for offset in range(0, len(WHOLE), 999):
        body.add(offset, memoryview(WHOLE)[offset : offset + 999])

    for start, size in ((0, len(WHOLE)), (5000, 1), (4095, 9000), (77, 0), (len(WHOLE), 0)):
        part = body.part(start, size)
        assert len(part) == size
        assert bytes_at(part) == WHOLE[start : start + size]
        if spool is not None and size:
            assert not isinstance(part, Data)
            read = bytearray(size // 2)
            part.read_into(size // 3, memoryview(read))
            assert read == WHOLE[start:][size // 3 : size // 3 + size // 2]
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_what_is_written_to_a_part_stays_there(spool: Spool | None) -> None:
    body = body_of(WHOLE, spool)
    part = memoryview(in_memory(body.part(0, 500)))
    part[0] = 99
    assert part[0] == 99
    if spool is not None:
        assert bytes_at(body.part(0, 500)) == WHOLE[:500]


def test_tensors_are_read_where_they_lie(spool: Spool | None) -> None:
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
    body = Body(len(WHOLE), Spool(tmp_path))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        with pytest.raises(WorkspaceError, match="No space left"):
            body.add(0, WHOLE)
    body.add(0, WHOLE)  # the same piece again, once there is room
    assert bytes_at(body.part(0, len(WHOLE))) == WHOLE


def test_a_spool_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="gone"):
        Body(bodies.IN_MEMORY + 1, Spool(tmp_path / "gone"))


def test_a_file_that_ends_too_soon_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IN_MEMORY", 100)
    part = body_of(WHOLE, Spool(tmp_path)).part(0, len(WHOLE))
    assert not isinstance(part, Data)

    with pytest.raises(WorkspaceError, match=f"ends at byte {len(WHOLE)}"):
        part.read_into(1, memoryview(bytearray(len(WHOLE))))


def files_of_this_process(folder: Path) -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the folder itself
            if descriptor.readlink().is_relative_to(folder):
                found.add(descriptor.name)
    return found


def test_a_body_that_is_no_more_leaves_its_file_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "IN_MEMORY", 100)
    spool = Spool(tmp_path)
    some = [body_of(WHOLE, spool) for _ in range(bodies.MOST_SPARE + 3)]
    assert len(files_of_this_process(tmp_path)) == len(some)
    del some
    kept = files_of_this_process(tmp_path)
    assert len(kept) == bodies.MOST_SPARE

    shorter = body_of(WHOLE[5:2000], spool)

    assert bytes_at(shorter.part(0, 1995)) == WHOLE[5:2000]
    assert files_of_this_process(tmp_path) == kept
    del shorter, spool
    assert not files_of_this_process(tmp_path)


def test_a_file_that_somebody_looks_at_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "IN_MEMORY", 100)
    spool = Spool(tmp_path)
    seen = torch.frombuffer(in_memory(body_of(WHOLE, spool).part(0, 5000)), dtype=torch.uint8)

    body_of(bytes(len(WHOLE)), spool)  # another body, while only the tensor is left of the first

    assert bytes(seen.numpy()) == WHOLE[:5000]

"""Replies on disk, until the server has settled them."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hanse.errors import OutboxError
from hanse.parts import Data
from hanse_client import outbox as outboxes
from hanse_client.bodies import Bodies
from hanse_client.outbox import Outbox

from tests.sqlite_files import commits, enlarge_row, rename_table

BODY: list[Data] = [b"abc", memoryview(b"defg"), bytearray(b"h")]


@pytest.fixture(params=["in the database", "in files"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "in files":
        monkeypatch.setattr(outboxes, "SMALL_BYTES", 0)
    return tmp_path / "outbox.sqlite"


def files(path: Path) -> list[Path]:
    """The bodies that lie in files of their own."""
    folder = path.with_suffix(".bodies")
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_reply_outlives_the_process(path: Path) -> None:
    before = Outbox(path)
    before.put("one", b"header", BODY)
    before.close()

    after = Outbox(path)

    assert after.instructions() == ["one"]
    assert after.header("one") == b"header"
    assert after.header("two") is None
    after.close()


def test_a_body_is_read_from_any_byte_on(path: Path) -> None:
    outbox = Outbox(path)
    outbox.put("one", b"", BODY)
    outbox.put("other", b"", [b"0123456789"])
    pieces = [outbox.piece("one", offset) for offset in range(9)]
    assert pieces == [b"abcdefgh"[offset:] for offset in range(9)]
    assert outbox.piece("none", 0) == b""
    outbox.close()


def test_a_later_reply_replaces_the_earlier_whole(path: Path) -> None:
    outbox = Outbox(path)
    outbox.put("one", b"first", BODY)
    outbox.put("one", b"second", [b"x"])
    assert outbox.header("one") == b"second"
    assert outbox.piece("one", 0) == b"x"
    assert outbox.piece("one", 1) == b""
    assert len(files(path)) <= 1
    outbox.close()


def test_what_is_forgotten_leaves_nothing(path: Path) -> None:
    outbox = Outbox(path)
    for name in ("one", "two"):
        outbox.put(name, b"", BODY)

    outbox.forget(["one", "never there"])

    assert outbox.instructions() == ["two"]
    outbox.close()
    with closing(sqlite3.connect(path)) as db:
        ((name, file),) = db.execute("SELECT instruction, file FROM reply")
    assert (name, files(path)) == ("two", [] if file is None else [path.parent / file_of(file)])


def test_a_body_goes_while_the_site_does_other_things_and_makes_room_for_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "SMALL_BYTES", 0)
    may_go, remove = threading.Event(), Bodies.remove

    def removed(self: Bodies, names: Iterable[str]) -> None:
        assert may_go.wait(20)
        remove(self, names)

    outbox = Outbox(path)
    outbox.put("one", b"", BODY)
    monkeypatch.setattr(Bodies, "remove", removed)
    outbox.forget(["one"])
    assert outbox.was_settled("one")
    assert len(files(path)) == 1

    seen, write = list[int](), os.write

    def written(descriptor: int, data: memoryview) -> int:
        seen.append(len(files(path)))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", written)
    threading.Timer(0.1, may_go.set).start()
    outbox.put("two", b"", BODY)

    assert set(seen) == {1}, "the old body was there when the new one was begun"
    assert outbox.instructions() == ["two"]
    outbox.close()


@pytest.mark.parametrize("second", [b"", b"12345", b"123456789012345"])
def test_a_settled_body_leaves_its_file_to_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch, second: bytes
) -> None:
    monkeypatch.setattr(outboxes, "SMALL_BYTES", -1)
    outbox, spare = Outbox(path), path.with_suffix(".spare")
    for name in ("one", "two"):
        outbox.put(name, b"", BODY)
    inodes = {each.stat().st_ino for each in files(path)}

    outbox.forget(["one", "two"])
    outbox.put("three", b"", [second])

    (file,) = files(path)
    assert file.stat().st_ino in inodes
    assert file.read_bytes() == second
    assert outbox.piece("three", 0) == second
    assert not spare.exists(), "one was kept, and has been taken"
    outbox.forget(["three"])
    outbox.close()
    assert not spare.exists()


def test_a_file_that_a_killed_client_had_kept_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "SMALL_BYTES", 0)
    spare = path.with_suffix(".spare")
    spare.write_bytes(b"of a process that is no more")
    inode = spare.stat().st_ino
    outbox = Outbox(path)

    outbox.put("one", b"", BODY)

    assert [each.stat().st_ino for each in files(path)] == [inode]
    assert outbox.piece("one", 0) == b"abcdefgh"
    outbox.close()


def file_of(name: str) -> Path:
    return Path("outbox.bodies") / name


def test_a_body_that_cannot_be_written_whole_is_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "SMALL_BYTES", 0)
    outbox = Outbox(path)

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OutboxError, match="No space left"):
            outbox.put("one", b"", BODY)

    assert (outbox.instructions(), files(path)) == ([], [])
    outbox.put("one", b"", BODY)
    assert outbox.piece("one", 0) == b"abcdefgh"
    outbox.close()


def test_what_a_crash_left_of_a_body_is_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "SMALL_BYTES", 0)
    outbox = Outbox(path)
    outbox.put("one", b"", BODY)
    outbox.close()
    kept = files(path)
    file_path = path.with_suffix(".bodies") / "half"
    file_path.write_bytes(b"half of it")

    again = Outbox(path)

    assert files(path) == kept
    assert again.piece("one", 3) == b"defgh"
    again.close()


@pytest.mark.parametrize("name", ["../outbox.sqlite", "gone"])
def test_a_body_that_is_not_there_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(outboxes, "SMALL_BYTES", 0)
    outbox = Outbox(path)
    outbox.put("one", b"", BODY)
    outbox._writer.execute("UPDATE reply SET file = ?", (name,))
    with pytest.raises(OutboxError, match=name):
        outbox.piece("one", 0)
    outbox.close()


def test_a_full_disk_is_told_as_such_and_keeps_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(path)
    outbox.put("one", b"", BODY)
    monkeypatch.setattr(outboxes, "SMALL_BYTES", 1 << 20)
    outbox._writer.execute("PRAGMA max_page_count = 20")  # as small a disk as a test can have

    with pytest.raises(OutboxError, match=r"outbox\.sqlite: database or disk is full"):
        outbox.put("two", b"", [bytes(1 << 20)])

    assert outbox.instructions() == ["one"]
    outbox.close()


def test_a_reply_is_durable_when_put_returns_and_forgotten_durably_before_its_file_goes(
    path: Path,
) -> None:
    outbox = Outbox(path)
    assert outbox._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    for size, forgotten in ((outboxes.SMALL_BYTES, "NORMAL"), (outboxes.SMALL_BYTES + 1, "FULL")):
        body = bytes(size)
        assert commits(outbox._writer, partial(outbox.put, "one", b"", [body])) == ["FULL"]
        assert commits(outbox._writer, partial(outbox.forget, ["one"])) == [forgotten]
    outbox.close()


def test_a_file_that_is_no_outbox(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OutboxError, match="not a database"):
        Outbox(path)


@pytest.mark.parametrize(
    ("statement", "use"),
    [
        ("UPDATE reply SET header = 'text'", lambda outbox: outbox.header("one")),
        ("UPDATE reply SET small = 7, file = NULL", lambda outbox: outbox.piece("one", 0)),
        ("UPDATE reply SET file = x'00'", lambda outbox: outbox.piece("one", 0)),
        ("UPDATE reply SET instruction = x'00'", lambda outbox: outbox.instructions()),
    ],
    ids=["header", "body", "file", "instruction"],
)
def test_values_of_another_type_are_refused(
    path: Path, statement: str, use: Callable[[Outbox], object]
) -> None:
    outbox = Outbox(path)
    outbox.put("one", b"header", BODY)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)
    with pytest.raises(OutboxError, match="damaged"):
        use(outbox)
    outbox.close()


@pytest.mark.parametrize("damage", [lambda p: rename_table(p, "reply"), enlarge_row])
def test_a_file_damaged_by_a_disk_is_refused(path: Path, damage: Callable[[Path], None]) -> None:
    Outbox(path).close()
    damage(path)
    with pytest.raises(OutboxError):
        Outbox(path)
    with pytest.raises(OutboxError):
        list(Outbox.look_into(path))

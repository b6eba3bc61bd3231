"""Replies on disk, until the server has settled them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hanse.errors import OutboxError
from hanse_client.outbox import Outbox

from tests.sqlite_files import enlarge_row, rename_table

BODY = [(0, b"abc"), (3, b"defg"), (7, b"h")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


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
    outbox.put("other", b"", [(0, b"0123456789")])
    pieces = [outbox.piece("one", offset) for offset in range(9)]
    assert pieces == [b"abc", b"bc", b"c", b"defg", b"efg", b"fg", b"g", b"h", b""]
    assert outbox.piece("none", 0) == b""
    outbox.close()


def test_a_later_reply_replaces_the_earlier_whole(path: Path) -> None:
    outbox = Outbox(path)
    outbox.put("one", b"first", BODY)
    outbox.put("one", b"second", [(0, b"x")])
    assert outbox.header("one") == b"second"
    assert outbox.piece("one", 0) == b"x"
    assert outbox.piece("one", 1) == b""
    outbox.close()


def test_what_is_forgotten_leaves_nothing(path: Path) -> None:
    outbox = Outbox(path)
    for name in ("one", "two"):
        outbox.put(name, b"", BODY)

    outbox.forget(["one", "never there"])

    assert outbox.instructions() == ["two"]
    outbox.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT DISTINCT instruction FROM piece").fetchall() == [("two",)]
    db.close()


def test_a_reply_that_cannot_be_written_whole_is_not_there(path: Path) -> None:
    outbox = Outbox(path)

    def fail() -> object:
        yield 0, b"abc"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outbox.put("one", b"", fail())  # type: ignore[arg-type]

    assert outbox.instructions() == []
    outbox.put("one", b"", BODY)
    assert outbox.piece("one", 0) == b"abc"
    outbox.close()


def test_a_full_disk_is_told_as_such_and_keeps_what_was_there(path: Path) -> None:
    outbox = Outbox(path)
    outbox.put("one", b"", BODY)
    outbox._writer.execute("PRAGMA max_page_count = 20")  # as small a disk as a test can have

    with pytest.raises(OutboxError, match=r"outbox\.sqlite: database or disk is full"):
        outbox.put("two", b"", [(0, bytes(1 << 20))])

    assert outbox.instructions() == ["one"]
    outbox.close()


def test_a_reply_is_durable_when_put_returns(path: Path) -> None:
    outbox = Outbox(path)
    assert outbox._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert outbox._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    outbox.close()


def test_a_file_that_is_no_outbox(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OutboxError, match="not a database"):
        Outbox(path)


@pytest.mark.parametrize(
    ("statement", "use"),
    [
        ("UPDATE reply SET header = 'text'", lambda outbox: outbox.header("one")),
        ("UPDATE piece SET data = 7", lambda outbox: outbox.piece("one", 0)),
        ("UPDATE reply SET instruction = x'00'", lambda outbox: outbox.instructions()),
    ],
    ids=["header", "piece", "instruction"],
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

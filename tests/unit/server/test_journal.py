"""What is owed, answered, abandoned and settled."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hanse.errors import WorkspaceError
from hanse_server.journal import KEEP_SECONDS, Entry, Journal, State

from tests.sqlite_files import commits, enlarge_row, rename_table


def entry(name: str, site: str = "north") -> Entry:
    return Entry(instruction=name, run_id=2**64 - 1, site=site, message_type="train", group_id="3")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_what_is_owed_outlives_the_process(path: Path) -> None:
    before = Journal(path)
    started = time.time()
    before.owe([entry("one"), entry("two", "south")])
    before.mark(["two"], State.RECEIVED)
    before.close()

    after = Journal(path)

    one, two = after.unsettled()
    assert (one.instruction, one.site, one.run_id) == ("one", "north", 2**64 - 1)
    assert (one.state, two.state) == (State.OWED, State.RECEIVED)
    assert started <= one.since <= two.since <= time.time()
    after.close()


def test_a_round_costs_the_same_however_many_were_settled_before_it(path: Path) -> None:
    journal = Journal(path)
    few = steps_of_a_round(journal, "few")
    journal.owe(entry(f"settled {number}") for number in range(20_000))
    journal.settle()
    assert steps_of_a_round(journal, "many") < 2 * few + 5
    journal.close()


def steps_of_a_round(journal: Journal, name: str) -> int:
    """In hundreds of instructions of SQLite's machine."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    journal.owe([entry(name)])
    journal._db.set_progress_handler(step, 100)
    assert [each.instruction for each in journal.unsettled()] == [name]
    assert [each.instruction for each in journal.settle()] == [name]
    journal._db.set_progress_handler(None, 100)
    return count


def test_what_is_not_known_counts_as_settled(path: Path) -> None:
    journal = Journal(path)
    assert journal.state("never seen") is State.SETTLED
    journal.close()


def test_settling_spares_what_is_kept_and_tells_what_is_new(path: Path) -> None:
    journal = Journal(path)
    journal.owe([entry("answered"), entry("given up"), entry("pending")])
    journal.mark(["answered"], State.RECEIVED)
    journal.mark(["given up"], State.ABANDONED)

    settled = journal.settle(keep={"pending"})

    assert {each.instruction for each in settled} == {"answered", "given up"}
    assert [each.instruction for each in journal.unsettled()] == ["pending"]
    assert journal.state("given up") is State.SETTLED
    assert journal.settle(keep={"pending"}) == []
    journal.close()


def test_what_is_asked_again_is_owed_again(path: Path) -> None:
    journal = Journal(path)
    journal.owe([entry("one")])
    journal.settle()
    journal.owe([entry("one")])
    assert journal.state("one") is State.OWED
    journal.close()


def test_the_long_settled_is_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    now = time.time()
    journal.owe([entry("one"), entry("open")])
    journal.settle(keep={"open"})
    monkeypatch.setattr("hanse_server.journal.time.time", lambda: now + KEEP_SECONDS + 60)

    journal.settle(keep={"open"})

    rows = journal._db.execute("SELECT id FROM instruction").fetchall()
    assert rows == [("open",)]
    journal.close()


def test_a_failure_leaves_nothing_half_done(path: Path) -> None:
    journal = Journal(path)
    journal.owe([entry("one")])
    journal._db.execute("PRAGMA max_page_count = 5")

    with pytest.raises(WorkspaceError, match=r"journal\.sqlite: .* full") as full:
        journal.owe(entry(f"{number:0100}") for number in range(1000))

    assert "Make room" in full.value.remedy
    assert [each.instruction for each in journal.unsettled()] == ["one"]
    journal.mark(["one"], State.RECEIVED)
    journal.close()


def test_all_but_what_is_advice_is_written_through_to_the_disk(path: Path) -> None:
    journal = Journal(path)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    assert commits(journal._db, lambda: journal.owe([entry("one")])) == ["FULL"]
    assert commits(journal._db, lambda: journal.mark(["one"], State.RECEIVED)) == ["NORMAL"]
    assert commits(journal._db, lambda: journal.mark(["one"], State.ABANDONED)) == ["FULL"]
    assert commits(journal._db, journal.settle) == ["FULL"]
    journal.close()


@pytest.mark.parametrize(
    ("column", "value", "read"),
    [
        ("state", "rettled", lambda journal: journal.state("one")),
        ("state", "rettled", lambda journal: journal.entry("one")),
        ("run_id", "y", lambda journal: journal.entry("one")),
        ("run_id", "y", lambda journal: journal.unsettled()),
        ("run_id", "y", lambda journal: journal.settle()),
    ],
)
def test_rows_that_make_no_sense_are_refused(
    path: Path, column: str, value: str, read: Callable[[Journal], object]
) -> None:
    journal = Journal(path)
    journal.owe([entry("one")])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE instruction SET {column} = ?", (value,))  # noqa: S608
    with pytest.raises(WorkspaceError, match="the journal cannot be used"):
        read(journal)
    journal.close()


@pytest.mark.parametrize("damage", [lambda p: rename_table(p, "instruction"), enlarge_row])
def test_a_file_damaged_by_a_disk_is_refused(path: Path, damage: Callable[[Path], None]) -> None:
    Journal(path).close()
    damage(path)
    with pytest.raises(WorkspaceError, match="the journal cannot be used"):
        Journal(path)

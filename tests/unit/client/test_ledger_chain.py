"""Tampering shows: in the chain of rows, and in what the audit trail tells of them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hanse.errors import LedgerBrokenError, LedgerError
from hanse.privacy.accounting import epsilon
from hanse_client.audit import AuditTrail, read_audit
from hanse_client.ledger import Ledger, read_ledger
from hanse_client.ledger import events as ledger_events
from hanse_client.ledger.chain import GENESIS
from hanse_client.ledger.verify import verify_ledger
from hanse_client.recount import recount

from tests.charges import BUDGET, CHARGE, DATA, instruction, reserve
from tests.sqlite_files import enlarge_row, rename_table

Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return tmp_path / "ledger.sqlite", tmp_path / "audit.jsonl"


def opened(files: Files) -> Ledger:
    ledger = Ledger(files[0])
    try:
        ledger.anchor(AuditTrail(files[1]))
    except LedgerError:
        ledger.close()
        raise
    return ledger


def written(files: Files) -> Files:
    """Three rounds, one of them taken back, one without privacy, and adopted data."""
    with opened(files) as ledger:
        for number in range(3):
            ledger.release(reserve(ledger, f"m{number}", server_round=number))
        ledger.take_back(reserve(ledger, "m3"))
        ledger.note_unprotected((DATA,), instruction("m4"))
        ledger.adopt(("c" * 64,), 1)
    return files


def edit(path: Path, *statements: str, chained_anew: bool = False) -> None:
    """What a hand with an SQLite shell does, once it has dropped the triggers."""
    database = sqlite3.connect(path, isolation_level=None)
    for trigger in ("only_at_the_end", "never_changed", "never_removed"):
        database.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    for statement in statements:
        database.execute(statement)
    if chained_anew:  # as a hand does that knows how the digests are made
        before, rows = GENESIS, database.execute("SELECT row, content FROM events").fetchall()
        for row, content in sorted(rows):
            before = hashlib.sha256((before + content).encode()).hexdigest()
            database.execute("UPDATE events SET digest = ? WHERE row = ?", (before, row))
    database.close()


FEWER_STEPS = "UPDATE events SET content = replace(content, ':16}', ':1}') WHERE row = 4"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET content = '{}' WHERE row = 2",
        "DELETE FROM events WHERE row = 2",
        "INSERT INTO events VALUES (99, '{}', '')",
        "INSERT OR REPLACE INTO events VALUES (2, '{}', '')",
        "INSERT INTO events SELECT 0, content, digest FROM events WHERE row = 1",
    ],
)
def test_sqlite_itself_refuses_to_change_rows(files: Files, statement: str) -> None:
    path, _ = written(files)
    database = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        (FEWER_STEPS, 4),
        ("UPDATE events SET digest = upper(digest) WHERE row = 3", 3),
        ("DELETE FROM events WHERE row = 5", 5),
        ("DELETE FROM events WHERE row = 1", 1),
        ("UPDATE events SET row = row + 1 WHERE row = (SELECT MAX(row) FROM events)", 11),
        ("INSERT INTO events SELECT MAX(row) + 1, content, digest FROM events", 12),
    ],
)
def test_a_row_that_was_changed_breaks_the_chain(files: Files, statement: str, row: int) -> None:
    path, trail = written(files)
    edit(path, statement)
    told = f"row {row} does not follow"
    with pytest.raises(LedgerBrokenError, match=told):
        opened(files)  # so that nothing is trained
    with pytest.raises(LedgerBrokenError, match=told):
        read_ledger(path)
    with pytest.raises(LedgerBrokenError, match=told):
        verify_ledger(path, trail, BUDGET.delta)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: edit(path, "DELETE FROM events WHERE row > 10"),
        lambda path: edit(path, FEWER_STEPS, chained_anew=True),
        Path.unlink,
    ],
    ids=["cut off at its end", "chained anew", "begun anew"],
)
def test_a_ledger_that_is_whole_but_another_is_not_the_one_the_trail_tells_of(
    files: Files, tamper: Callable[[Path], None]
) -> None:
    path, trail = written(files)
    tamper(path)
    for check in (lambda: opened(files), lambda: verify_ledger(path, trail, BUDGET.delta)):
        with pytest.raises(LedgerBrokenError, match="is not the one that the audit trail tells of"):
            check()


def test_a_trail_that_was_cut_off_shows_in_the_ledger(files: Files) -> None:
    path, trail = written(files)
    lines = trail.read_text().splitlines(keepends=True)
    for kept in (0, len(lines) - 2):
        trail.write_text("".join(lines[:kept]))
        for check in (lambda: opened(files), lambda: verify_ledger(path, trail, BUDGET.delta)):
            with pytest.raises(LedgerBrokenError, match="lines were removed from the trail"):
                check()


def test_a_trail_whose_line_was_changed_is_refused(files: Files) -> None:
    path, trail = written(files)
    trail.write_text(trail.read_text().replace('"steps": 16', '"steps": 1', 1))
    for check in (lambda: opened(files), lambda: verify_ledger(path, trail, BUDGET.delta)):
        with pytest.raises(LedgerBrokenError, match="line 3 does not follow"):
            check()


def test_what_is_changed_under_an_open_ledger_stops_it(files: Files) -> None:
    with opened(files) as ledger:
        reserve(ledger, "m1")
        edit(files[0], "DELETE FROM events WHERE row = 2")
        with pytest.raises(LedgerBrokenError, match="no longer row 2"):
            reserve(ledger, "m2")


def test_rows_that_make_no_sense_are_refused_though_their_chain_holds(files: Files) -> None:
    path, _ = files
    release = ledger_events.write(ledger_events.ChargeReleased(charge=7))
    for content in (release, "{}", '{"kind":"charged"}'):
        Ledger(path).close()
        edit(path, "DELETE FROM events", "INSERT INTO events VALUES (1, '', '')")
        written = f"UPDATE events SET content = '{content}'"  # noqa: S608
        edit(path, written, chained_anew=True)
        with pytest.raises(LedgerBrokenError, match=r"makes no sense|holds no event"):
            Ledger(path)
        path.unlink()


def test_a_row_that_a_crash_kept_from_the_trail_is_told_at_the_next_start(files: Files) -> None:
    path, trail = written(files)
    lines = trail.read_text().splitlines(keepends=True)
    trail.write_text("".join(lines[:-1]))
    found = verify_ledger(path, trail, BUDGET.delta)
    assert (found.rows, found.told) == (11, 10)
    opened(files).close()
    before, after = json.loads(lines[-1]), read_audit(trail)[-1]
    assert {**before, "time": 0} == {**after, "time": 0}
    found = verify_ledger(path, trail, BUDGET.delta)
    assert found.rows == found.told == 11


def test_a_row_that_the_trail_had_no_room_for_is_told_before_the_next(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, trail = files
    with opened(files) as ledger:
        reserve(ledger, "m1")
        full = LedgerError("the audit trail cannot be written: No space left on device")

        def refuse(*_: object, **__: object) -> None:
            raise full

        with monkeypatch.context() as disk:
            disk.setattr(AuditTrail, "write", refuse)
            for _ in range(2):  # the row is there, and no further one is added
                with pytest.raises(LedgerError, match="No space left"):
                    reserve(ledger, "m2")
            assert verify_ledger(path, trail, BUDGET.delta).rows == 3
        again = reserve(ledger, "m2")  # nothing was trained under it
        assert again.resumed
        assert again.statement.rounds == 2
    assert verify_ledger(path, trail, BUDGET.delta).told == 3


def test_a_recount_from_the_trail_alone_gives_the_same_epsilon(files: Files) -> None:
    path, trail = written(files)
    (account,) = read_ledger(path).accounts()
    found = recount(read_audit(trail))[1]
    assert (found.charges, found.unprotected) == (account.charges, 1)
    verified = verify_ledger(path, trail, BUDGET.delta)
    assert verified.recounted == {1: epsilon([CHARGE] * 3, BUDGET.delta)}


def test_a_recount_follows_accounts_that_were_joined(files: Files) -> None:
    with opened(files) as ledger:
        reserve(ledger, "m1")
        ledger.adopt(("c" * 64,), None)
        ledger.release(reserve(ledger, "m2", data=("c" * 64,)))
        ledger.note_unprotected(("c" * 64,), instruction("m3"))
        assert set(verify_ledger(*files, BUDGET.delta).recounted) == {1, 2}
        ledger.adopt((DATA, "c" * 64), 1)
    assert verify_ledger(*files, BUDGET.delta).recounted == {
        1: epsilon([CHARGE, CHARGE], BUDGET.delta)
    }


def test_an_error_of_the_ledgers_own_counting_shows(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hanse_client.ledger.book import Account

    written(files)
    monkeypatch.setattr(Account, "charges", property(lambda self: ()))
    with pytest.raises(LedgerBrokenError, match="a recount from the audit trail differ"):
        verify_ledger(*files, BUDGET.delta)


def test_a_trail_without_sense_is_named(files: Files) -> None:
    AuditTrail(files[1]).write("charged", id="m1")
    with pytest.raises(LedgerBrokenError, match="line 1 of the audit trail, charged, makes no"):
        recount(read_audit(files[1]))


def test_nothing_is_whole_too(files: Files) -> None:
    found = verify_ledger(*files, BUDGET.delta)
    assert (found.rows, found.told, found.digest, found.recounted) == (0, 0, GENESIS, {})


@pytest.mark.parametrize("event", ["charged", "unprotected"])
@pytest.mark.parametrize("data", ["b" * 64, []])
def test_a_trail_that_tells_of_data_of_no_account_is_refused(
    files: Files, event: str, data: object
) -> None:
    line = {"event": event, "id": "m1", "row": 1, "fingerprints": [data]}
    line |= {"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 1}
    with pytest.raises(LedgerBrokenError, match=r"of the audit trail|of no account"):
        recount([line])


@pytest.mark.parametrize("damage", [lambda p: rename_table(p, "events"), enlarge_row])
def test_a_file_damaged_by_a_disk_is_refused(files: Files, damage: Callable[[Path], None]) -> None:
    written(files)
    damage(files[0])
    for read in (read_ledger, Ledger):
        with pytest.raises(LedgerError):
            read(files[0])


def test_an_account_that_is_no_number_is_refused() -> None:
    line = {"event": "account_opened", "account": "1", "fingerprints": [DATA]}
    with pytest.raises(LedgerBrokenError, match="line 1 of the audit trail, account_opened"):
        recount([line])

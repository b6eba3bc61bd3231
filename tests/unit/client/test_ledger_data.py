"""Whose data it is: a changed file is a question to the administrator, never a fresh budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hanse.errors import DataChangedError, LedgerError
from hanse.privacy.accounting import epsilon
from hanse_client.ledger import Ledger, read_ledger

from tests.charges import BUDGET, CHARGE, instruction, reserve

OLD, NEW, TEST = ("d" * 64, "e" * 64, "f" * 64)
ONCE = epsilon([CHARGE], BUDGET.delta)
TWICE = epsilon([CHARGE, CHARGE], BUDGET.delta)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


def spent(ledger: Ledger, fingerprint: str) -> float:
    return ledger.statement(fingerprint, BUDGET).spent


def test_the_first_data_opens_the_first_account(ledger: Ledger) -> None:
    assert ledger.identify((OLD, TEST)).number == 1
    assert ledger.identify((OLD,)).number == 1
    assert ledger.statement(TEST, BUDGET).account == 1
    assert ledger.statement(NEW, BUDGET).account is None


def test_changed_data_is_a_question_and_no_fresh_budget(ledger: Ledger) -> None:
    reserve(ledger, "m1", data=(OLD,))
    with pytest.raises(DataChangedError, match=r"data e{12} is not known .*account 1\)") as asked:
        reserve(ledger, "m2", data=(NEW,))
    assert "--adopt 1" in asked.value.remedy
    with pytest.raises(DataChangedError):
        ledger.identify((NEW,))
    with pytest.raises(DataChangedError):
        ledger.note_unprotected((NEW,), instruction("m3"))
    assert len(ledger.entries()) == 1
    assert not asked.value.discloses_nothing


def test_a_held_out_file_that_is_not_known_is_a_question_too(ledger: Ledger) -> None:
    reserve(ledger, "m1", data=(OLD,))
    with pytest.raises(DataChangedError, match=r"data f{12} is not known"):
        reserve(ledger, "m2", data=(OLD, TEST))


def test_adopted_data_goes_on_with_what_is_spent(path: Path) -> None:
    with Ledger(path) as ledger:
        reserve(ledger, "m1", data=(OLD,))
        ledger.adopt((NEW,), 1)
        reserve(ledger, "m2", data=(NEW,))
    with Ledger(path) as ledger:  # and for ever
        assert spent(ledger, NEW) == spent(ledger, OLD) == TWICE
        assert ledger.statement(OLD, BUDGET).account == 1
        assert set(ledger.identify((NEW, OLD)).data) == {OLD, NEW}


def test_new_data_has_an_account_of_its_own(ledger: Ledger) -> None:
    reserve(ledger, "m1", data=(OLD,))
    assert ledger.adopt((NEW, TEST), None).number == 2
    reserve(ledger, "m2", data=(NEW, TEST))
    assert spent(ledger, NEW) == spent(ledger, OLD) == ONCE


def test_a_replay_on_data_of_another_account_is_charged_there(path: Path) -> None:
    with Ledger(path) as crashed:
        reserve(crashed, "m1", data=(OLD,))
    with Ledger(path) as ledger:
        ledger.adopt((NEW,), None)
        assert not reserve(ledger, "m1", data=(NEW,)).resumed
        assert len(ledger.entries()) == 2


def test_known_data_is_never_made_new(ledger: Ledger) -> None:
    reserve(ledger, "m1", data=(OLD,))
    for data in ((OLD,), (NEW, OLD)):
        with pytest.raises(DataChangedError, match="belongs to account 1, and cannot be new"):
            ledger.adopt(data, None)
    assert spent(ledger, OLD) == ONCE


def test_there_must_be_such_an_account(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="there is no account 3") as refused:
        ledger.adopt((NEW,), 3)
    assert "none" in refused.value.remedy


def test_train_and_test_of_different_accounts_are_a_question(ledger: Ledger) -> None:
    reserve(ledger, "m1", data=(OLD,))
    ledger.adopt((TEST,), None)
    with pytest.raises(DataChangedError, match="different accounts, 1 and 2"):
        ledger.identify((OLD, TEST))


def test_accounts_that_turn_out_to_be_of_the_same_people_add_up(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.release(reserve(ledger, "m1", data=(OLD,)))
        ledger.adopt((NEW,), None)
        reservation = reserve(ledger, "m2", data=(NEW,))
        ledger.note_unprotected((NEW,), instruction("m3"))
        ledger.adopt((OLD, NEW), 1)
        ledger.release(reservation)
    with Ledger(path) as ledger:
        assert ledger.identify((OLD, NEW)).number == 1
        statement = ledger.statement(OLD, BUDGET)
        assert (statement.spent, statement.rounds, statement.unprotected) == (TWICE, 2, 1)
        assert [account.number for account in read_ledger(path).accounts()] == [1]
        assert ledger.adopt(("1" * 64,), None).number == 3, "a number is never given again"


def test_to_adopt_what_is_there_changes_nothing(ledger: Ledger, path: Path) -> None:
    reserve(ledger, "m1", data=(OLD,))
    before = path.with_name("ledger.sqlite-wal").read_bytes()
    ledger.adopt((OLD,), 1)
    assert path.with_name("ledger.sqlite-wal").read_bytes() == before

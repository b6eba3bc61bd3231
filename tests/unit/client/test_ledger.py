"""The ledger never counts too little: over rounds, runs, and messages that come again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from hanse.errors import BudgetError, LedgerError
from hanse.privacy.accounting import Charge, epsilon
from hanse_client.ledger import Ledger, Reservation, Statement, read_ledger
from hanse_client.site import Budget

from tests.charges import BUDGET, DATA, JOB, instruction, reserve


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


def stated(ledger: Ledger, message_id: str, **changes: object) -> Statement:
    return reserve(ledger, message_id, **changes).statement  # type: ignore[arg-type]


def abandoned(path: Path, message_id: str = "m1") -> Reservation:
    """What a client that was killed leaves behind."""
    with Ledger(path) as crashed:
        return reserve(crashed, message_id)


def messages(ledger: Ledger) -> list[str]:
    return [entry.instruction.message_id for entry in ledger.entries()]


# --- what it counts -------------------------------------------------------------------------


def test_rounds_compose_to_exactly_the_epsilon_of_one_run(ledger: Ledger) -> None:
    for number in range(1, 11):
        ledger.release(reserve(ledger, f"m{number}", server_round=number))
    whole = Charge(noise_multiplier=1.0, sampling_rate=0.064, steps=160)
    statement = ledger.statement(DATA, BUDGET)
    assert statement.spent == epsilon([whole], BUDGET.delta) == pytest.approx(5.56, abs=0.01)
    assert statement.left == BUDGET.epsilon - statement.spent
    assert statement.rounds == 10
    assert statement.tight


def test_processes_of_one_round_each_come_to_exactly_the_epsilon_of_one_run(path: Path) -> None:
    script = dedent(
        """
        import os, sys
        from pathlib import Path
        from hanse_client.ledger import Ledger
        from tests.charges import reserve

        for number in range(3):
            child = os.fork()
            if child == 0:
                with Ledger(Path(sys.argv[1])) as ledger:
                    ledger.release(reserve(ledger, f"m{number}"))
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        """
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    with Ledger(None) as ledger:
        for number in range(3):
            ledger.release(reserve(ledger, f"m{number}"))
        in_one_run = ledger.statement(DATA, BUDGET)
    assert read_ledger(path).statement(DATA, BUDGET) == in_one_run
    whole = Charge(noise_multiplier=1.0, sampling_rate=0.064, steps=48)
    assert in_one_run.spent == epsilon([whole], BUDGET.delta)


def test_it_composes_over_runs_jobs_and_restarts(path: Path) -> None:
    for run in range(3):
        with Ledger(path) as ledger:
            assert stated(ledger, f"of-run-{run}", run_id=run).rounds == run + 1
    assert read_ledger(path).statement(DATA, BUDGET).rounds == 3


def test_an_entry_holds_the_event_as_it_was(ledger: Ledger) -> None:
    odd = Charge(noise_multiplier=0.1 + 0.2, sampling_rate=1 / 3, steps=7)
    reservation = reserve(ledger, "m1", charge=odd, budget=Budget(epsilon=1000.0))
    (entry,) = ledger.entries()
    assert (entry.charge, entry.instruction.run_id) == (odd, 2**63 + 5)
    assert (entry.instruction.job_digest, entry.fingerprints) == (JOB, (DATA,))
    assert entry.state == "reserved"
    assert entry.reserved_at == pytest.approx(time.time(), abs=60)
    ledger.release(reservation)
    assert ledger.entries()[0].state == "released"


def test_what_would_pass_the_budget_is_refused_with_the_numbers(ledger: Ledger) -> None:
    small = Budget(epsilon=2.5)
    reserve(ledger, "m1", budget=small)  # 2.29
    with pytest.raises(BudgetError, match=r"to 2\.8\d* at .* budget of 2\.5 \(2\.2\d* is spent"):
        reserve(ledger, "m2", budget=small)
    assert messages(ledger) == ["m1"]
    assert stated(ledger, "m3", budget=BUDGET).rounds == 2  # a larger budget has room


def test_a_reservation_counts_whether_or_not_it_is_released(ledger: Ledger) -> None:
    small = Budget(epsilon=2.5)
    reservation = reserve(ledger, "m1", budget=small)
    with pytest.raises(BudgetError):
        reserve(ledger, "m2", budget=small)
    ledger.release(reservation)
    with pytest.raises(BudgetError):
        reserve(ledger, "m2", budget=small)


def test_the_budgets_delta_is_what_counts(ledger: Ledger) -> None:
    strict = stated(ledger, "m1", budget=Budget(epsilon=8.0, delta=1e-9)).spent
    assert strict > ledger.statement(DATA, BUDGET).spent


def test_evaluations_are_charged_to_the_same_budget(ledger: Ledger) -> None:
    once = stated(ledger, "m1").spent
    judged = Charge(noise_multiplier=5.0, sampling_rate=1.0, steps=1)
    both = stated(ledger, "m2", charge=judged, kind="evaluate")
    assert both.spent > once
    assert (both.rounds, both.evaluations) == (1, 1)


def test_in_memory_it_counts_as_on_disk() -> None:
    with Ledger(None) as ledger, Ledger(None) as other:
        reserve(ledger, "m1")
        assert stated(ledger, "m2").rounds == 2
        assert other.entries() == []


def test_rounds_without_privacy_are_noted_once_each(ledger: Ledger) -> None:
    for message_id in ("m1", "m1", "m2"):
        ledger.note_unprotected((DATA,), instruction(message_id))
    assert ledger.statement(DATA, BUDGET).unprotected == 2
    assert stated(ledger, "m3").unprotected == 2


def test_a_reservation_takes_milliseconds_also_after_many_rounds(ledger: Ledger) -> None:
    large = Budget(epsilon=1000.0)
    reserve(ledger, "first", budget=large)
    started = time.monotonic()
    for number in range(50):
        reserve(ledger, f"m{number}", budget=large)
    assert (time.monotonic() - started) / 50 < 0.1


def test_a_settled_charge_takes_no_memory_and_counts_as_before(ledger: Ledger, path: Path) -> None:
    """Weeks of rounds: what counts is kept in memory, each charge in the file."""
    large = Budget(epsilon=1000.0)
    settled = [reserve(ledger, f"m{number}", budget=large) for number in range(20)]
    for number, reservation in enumerate(settled):
        ledger.release(reservation) if number % 4 else ledger.take_back(reservation)
    reserve(ledger, "open", budget=large)
    (account,) = ledger._book.accounts()
    assert [entry.instruction.message_id for entry in account.entries.values()] == ["open"]
    assert len(ledger._book._charged_to) == 1
    assert len(ledger.entries()) == 21
    assert ledger.entries() == read_ledger(path).entries()
    assert ledger.statement(DATA, large) == read_ledger(path).statement(DATA, large)
    assert ledger.statement(DATA, large).rounds == 16


def test_settled_charges_of_adopted_data_count_for_who_adopts_it(path: Path) -> None:
    large, others = Budget(epsilon=1000.0), ("c" * 64,)
    with Ledger(path) as ledger:
        ledger.release(reserve(ledger, "m1", budget=large))
        ledger.adopt(others, None)
        ledger.release(reserve(ledger, "m2", data=others, budget=large))
        ledger.note_unprotected(others, instruction("m3"))
        open_ = reserve(ledger, "m4", data=others, budget=large)
        ledger.adopt(others, 1)
        ledger.release(open_)
        stated = ledger.statement(DATA, large)
        assert (stated.rounds, stated.unprotected) == (3, 1)
        assert stated == read_ledger(path).statement(DATA, large)
        assert ledger.statement(others[0], large) == stated


# --- messages that come again ---------------------------------------------------------------


def test_a_replay_after_a_crash_takes_up_its_reservation(path: Path) -> None:
    before = abandoned(path)
    with Ledger(path) as ledger:
        taken_up = reserve(ledger, "m1")
        assert (taken_up.row, taken_up.statement) == (before.row, before.statement)
        assert taken_up.resumed
        assert len(ledger.entries()) == 1


def test_a_replay_of_what_was_released_is_charged_anew(path: Path) -> None:
    with Ledger(path) as first:
        first.release(reserve(first, "m1"))
        assert stated(first, "m1").rounds == 2
    with Ledger(path) as ledger:
        ledger.release(reserve(ledger, "m1"))  # the second one, which was not released
        assert stated(ledger, "m1").rounds == 3


def test_a_replay_while_the_first_may_be_under_way_is_charged_anew(ledger: Ledger) -> None:
    reserve(ledger, "m1")
    assert stated(ledger, "m1").rounds == 2


def test_two_replays_after_a_crash_do_not_share_a_reservation(path: Path) -> None:
    abandoned(path)
    with Ledger(path) as ledger:
        assert stated(ledger, "m1").rounds == 1
        assert stated(ledger, "m1").rounds == 2


@pytest.mark.parametrize(
    "other",
    [
        Charge(noise_multiplier=0.9, sampling_rate=0.064, steps=16),
        Charge(noise_multiplier=1.0, sampling_rate=0.065, steps=16),
        Charge(noise_multiplier=1.0, sampling_rate=0.064, steps=17),
    ],
)
def test_a_replay_that_asks_for_something_else_is_charged_anew(path: Path, other: Charge) -> None:
    abandoned(path)
    with Ledger(path) as ledger:
        assert stated(ledger, "m1", charge=other).rounds == 2


def test_a_replay_is_refused_if_the_budget_was_lowered(path: Path) -> None:
    abandoned(path)
    with Ledger(path) as ledger, pytest.raises(BudgetError):
        reserve(ledger, "m1", budget=Budget(epsilon=1.0))


def test_a_charge_is_settled_once(ledger: Ledger, path: Path) -> None:
    reservation = reserve(ledger, "m1")
    ledger.release(reservation)
    for act in (ledger.release, ledger.take_back):
        with pytest.raises(LedgerError, match="is settled"):
            act(reservation)
    ledger.close()
    assert [entry.state for entry in read_ledger(path).entries()] == ["released"]


# --- taken back -----------------------------------------------------------------------------


def test_what_was_taken_back_counts_no_more_and_is_still_told(ledger: Ledger, path: Path) -> None:
    kept = stated(ledger, "m1").spent
    ledger.take_back(reserve(ledger, "m2"))
    statement = ledger.statement(DATA, BUDGET)
    assert statement.rounds == 1
    assert statement.spent <= kept  # the fast bound
    assert [entry.state for entry in ledger.entries()] == ["reserved", "taken back"]
    again = reserve(ledger, "m2")
    assert not again.resumed
    assert again.statement.rounds == 2


def test_a_reservation_of_before_a_crash_is_never_taken_back(path: Path) -> None:
    """The client that was killed may have drawn batches under it."""
    abandoned(path)
    with Ledger(path) as ledger:
        ledger.take_back(reserve(ledger, "m1"))
        assert [entry.state for entry in ledger.entries()] == ["reserved"]
        assert reserve(ledger, "m1").resumed  # it can be taken up again


# --- threads --------------------------------------------------------------------------------


def test_threads_do_not_slip_past_the_budget_together(ledger: Ledger) -> None:
    budget = Budget(epsilon=3.0)  # room for two
    refused = []

    def spend(number: int) -> None:
        try:
            reserve(ledger, f"m{number}", budget=budget)
        except BudgetError:
            refused.append(number)

    threads = [threading.Thread(target=spend, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(ledger.entries()), len(refused)) == (2, 4)
    assert ledger.statement(DATA, budget).spent <= 3.0

"""The ledger never counts too little: over rounds, runs, replays, crashes, and full disks."""

from __future__ import annotations

import random
import signal
import sqlite3
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
from hanse_client.ledger import Ledger
from hanse_client.ledger_reader import LedgerReader, Statement
from hanse_client.site import Budget

BUDGET = Budget(epsilon=8.0, delta=1e-5)
CHARGE = Charge(noise_multiplier=1.0, sampling_rate=0.064, steps=16)
DATA = "a" * 64
JOB = "b" * 64


def reserve(
    ledger: Ledger,
    message_id: str,
    *,
    fingerprint: str = DATA,
    run_id: int = 2**63 + 5,
    server_round: int = 1,
    charge: Charge = CHARGE,
    budget: Budget = BUDGET,
) -> Statement:
    return ledger.reserve(
        fingerprint=fingerprint,
        message_id=message_id,
        run_id=run_id,
        server_round=server_round,
        job_digest=JOB,
        charge=charge,
        budget=budget,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        yield opened


# --- what it counts -------------------------------------------------------------------------


def test_rounds_compose_to_exactly_the_epsilon_of_one_run(ledger: Ledger) -> None:
    for number in range(1, 11):
        reserve(ledger, f"m{number}", server_round=number)
        ledger.release(f"m{number}")
    whole = Charge(noise_multiplier=1.0, sampling_rate=0.064, steps=160)
    statement = ledger.statement(DATA, BUDGET)
    assert statement.spent == epsilon([whole], BUDGET.delta) == pytest.approx(5.56, abs=0.01)
    assert statement.left == BUDGET.epsilon - statement.spent
    assert statement.rounds == 10
    assert statement.tight


def test_it_composes_over_runs_jobs_and_restarts(path: Path) -> None:
    for run in range(3):
        with Ledger(path) as ledger:
            statement = reserve(ledger, f"of-run-{run}", run_id=run)
            assert statement.rounds == run + 1
    with LedgerReader(path) as reader:
        assert reader.statement(DATA, BUDGET).rounds == 3


def test_data_sets_are_charged_apart(ledger: Ledger) -> None:
    alone = reserve(ledger, "m1").spent
    assert reserve(ledger, "m2", fingerprint="c" * 64).spent == alone
    assert ledger.data_sets() == [DATA, "c" * 64]
    assert [entry.message_id for entry in ledger.entries("c" * 64)] == ["m2"]
    assert len(ledger.entries()) == 2


def test_an_entry_holds_the_event_as_it_was(ledger: Ledger) -> None:
    odd = Charge(noise_multiplier=0.1 + 0.2, sampling_rate=1 / 3, steps=7)
    reserve(ledger, "m1", charge=odd, budget=Budget(epsilon=1000.0))
    (entry,) = ledger.entries()
    assert (entry.charge, entry.run_id, entry.job_digest) == (odd, 2**63 + 5, JOB)
    assert entry.state == "reserved"
    assert entry.reserved_at == pytest.approx(time.time(), abs=60)
    ledger.release("m1")
    assert ledger.entries()[0].state == "released"


def test_what_would_pass_the_budget_is_refused_with_the_numbers(ledger: Ledger) -> None:
    small = Budget(epsilon=2.5)
    reserve(ledger, "m1", budget=small)  # 2.29
    with pytest.raises(BudgetError, match=r"to 2\.8\d* at .* budget of 2\.5 \(2\.2\d* is spent"):
        reserve(ledger, "m2", budget=small)
    assert [entry.message_id for entry in ledger.entries()] == ["m1"]
    assert reserve(ledger, "m3", budget=BUDGET).rounds == 2  # a larger budget has room


def test_a_reservation_counts_whether_or_not_it_is_released(ledger: Ledger) -> None:
    small = Budget(epsilon=2.5)
    reserve(ledger, "m1", budget=small)
    with pytest.raises(BudgetError):
        reserve(ledger, "m2", budget=small)
    ledger.release("m1")
    with pytest.raises(BudgetError):
        reserve(ledger, "m2", budget=small)


def test_the_budgets_delta_is_what_counts(ledger: Ledger) -> None:
    strict = reserve(ledger, "m1", budget=Budget(epsilon=8.0, delta=1e-9)).spent
    assert strict > ledger.statement(DATA, BUDGET).spent


def test_in_memory_it_counts_as_on_disk() -> None:
    with Ledger(None) as ledger, Ledger(None) as other:
        reserve(ledger, "m1")
        assert reserve(ledger, "m2").rounds == 2
        assert other.entries() == []


def test_a_reservation_takes_milliseconds_also_after_many_rounds(ledger: Ledger) -> None:
    large = Budget(epsilon=1000.0)
    reserve(ledger, "first", budget=large)
    started = time.monotonic()
    for number in range(50):
        reserve(ledger, f"m{number}", budget=large)
    assert (time.monotonic() - started) / 50 < 0.1


# --- replays --------------------------------------------------------------------------------


def test_a_replay_after_a_crash_takes_up_its_reservation(path: Path) -> None:
    with Ledger(path) as crashed:
        before = reserve(crashed, "m1")
    with Ledger(path) as ledger:
        assert reserve(ledger, "m1") == before
        assert len(ledger.entries()) == 1


def test_a_replay_of_what_was_released_is_charged_anew(path: Path) -> None:
    with Ledger(path) as first:
        reserve(first, "m1")
        first.release("m1")
    with Ledger(path) as ledger:
        assert reserve(ledger, "m1").rounds == 2


def test_a_replay_while_the_first_may_be_under_way_is_charged_anew(ledger: Ledger) -> None:
    reserve(ledger, "m1")
    assert reserve(ledger, "m1").rounds == 2


def test_two_replays_after_a_crash_do_not_share_a_reservation(path: Path) -> None:
    with Ledger(path) as crashed:
        reserve(crashed, "m1")
    with Ledger(path) as ledger:
        assert reserve(ledger, "m1").rounds == 1
        assert reserve(ledger, "m1").rounds == 2


@pytest.mark.parametrize(
    "other",
    [
        Charge(noise_multiplier=0.9, sampling_rate=0.064, steps=16),
        Charge(noise_multiplier=1.0, sampling_rate=0.065, steps=16),
        Charge(noise_multiplier=1.0, sampling_rate=0.064, steps=17),
    ],
)
def test_a_replay_that_asks_for_something_else_is_charged_anew(path: Path, other: Charge) -> None:
    with Ledger(path) as crashed:
        reserve(crashed, "m1")
    with Ledger(path) as ledger:
        assert reserve(ledger, "m1", charge=other).rounds == 2


def test_a_replay_on_other_data_is_charged_there(path: Path) -> None:
    with Ledger(path) as crashed:
        reserve(crashed, "m1")
    with Ledger(path) as ledger:
        assert reserve(ledger, "m1", fingerprint="c" * 64).rounds == 1
        assert len(ledger.entries()) == 2


def test_a_replay_is_refused_if_the_budget_was_lowered(path: Path) -> None:
    with Ledger(path) as crashed:
        reserve(crashed, "m1")
    with Ledger(path) as ledger, pytest.raises(BudgetError):
        reserve(ledger, "m1", budget=Budget(epsilon=1.0))


def test_release_is_idempotent_and_knows_its_messages(ledger: Ledger) -> None:
    reserve(ledger, "m1")
    ledger.release("m1")
    first = ledger.entries()[0].released_at
    ledger.release("m1")
    assert ledger.entries()[0].released_at == first
    with pytest.raises(LedgerError, match="nothing is reserved for message m2"):
        ledger.release("m2")


# --- processes, threads, crashes, disks -----------------------------------------------------


def test_two_clients_cannot_hold_one_ledger(path: Path) -> None:
    script = dedent(
        """
        import sys
        from pathlib import Path
        from hanse.errors import LedgerError
        from hanse_client.ledger import Ledger
        try:
            Ledger(Path(sys.argv[1]))
        except LedgerError as refused:
            print(refused.message)
            raise SystemExit(refused.exit_code)
        """
    )
    command = [sys.executable, "-c", script, str(path)]
    with Ledger(path):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (second.returncode, "another client holds" in second.stdout) == (42, True)
        with pytest.raises(LedgerError, match="another client holds"):
            Ledger(path)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_it_can_be_read_while_a_client_holds_it(ledger: Ledger, path: Path) -> None:
    reserve(ledger, "m1")
    with LedgerReader(path) as reader:
        assert reader.statement(DATA, BUDGET) == ledger.statement(DATA, BUDGET)
        reserve(ledger, "m2")
        assert len(reader.entries()) == 2


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


CLIENT = dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from hanse.privacy.accounting import Charge
    from hanse_client.ledger import Ledger
    from hanse_client.site import Budget

    charge = Charge(noise_multiplier=50.0, sampling_rate=1.0, steps=1)
    path, start, die_at = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def reach(point):
        if point == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with Ledger(path) as ledger:
        for number in range(start, start + 1000):
            reach("before")
            ledger.reserve(
                fingerprint="a" * 64, message_id=f"m{number}", run_id=1, server_round=number,
                job_digest="b" * 64, charge=charge, budget=Budget(epsilon=100.0),
            )
            print("trained", number, flush=True)
            reach("reserved")
            ledger.release(f"m{number}")
            reach("released")
            print("left", number, flush=True)
    """
)


@pytest.mark.parametrize(
    ("die_at", "states"),
    [("before", []), ("reserved", ["reserved"]), ("released", ["released"])],
)
def test_killed_at_each_point_it_holds_what_was_written(
    path: Path, die_at: str, states: list[str]
) -> None:
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, str(path), "0", die_at], capture_output=True, check=False
    )
    assert client.returncode == -signal.SIGKILL
    with Ledger(path) as ledger:
        assert [entry.state for entry in ledger.entries()] == states


def test_killed_at_any_time_it_never_counts_too_little(path: Path) -> None:
    moments = random.Random(20)
    for start in range(0, 4000, 1000):
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(path), str(start), "never"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout is not None
        said = client.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.2))
        client.kill()
        said += client.communicate()[0]
        whole_lines = said[: said.rindex("\n")].splitlines()  # killed, it may stop in a word
        with LedgerReader(path) as reader:
            entries = {entry.message_id: entry for entry in reader.entries()}
        for line in whole_lines:
            what, _, number = line.partition(" ")
            assert f"m{number}" in entries, f"{what} without an entry"
            assert what != "left" or entries[f"m{number}"].state == "released"
        open_entries = [e for e in entries.values() if e.state == "reserved"]
        assert len(open_entries) <= start // 1000 + 1


def test_a_full_disk_refuses_and_keeps_what_is_there(path: Path) -> None:
    script = dedent(
        """
        import resource, sys
        from pathlib import Path
        from hanse.errors import LedgerError
        from hanse.privacy.accounting import Charge
        from hanse_client.ledger import Ledger
        from hanse_client.site import Budget

        charge = Charge(noise_multiplier=50.0, sampling_rate=1.0, steps=1)
        path = Path(sys.argv[1])
        ledger = Ledger(path)

        def spend(number):
            ledger.reserve(
                fingerprint="a" * 64, message_id=f"m{number}", run_id=1, server_round=number,
                job_digest="b" * 64, charge=charge, budget=Budget(epsilon=100.0),
            )

        spend(0)
        written = path.with_name(path.name + "-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (written + 100, resource.RLIM_INFINITY))
        for act in (lambda: spend(1), lambda: ledger.release("m0")):
            try:
                act()
            except LedgerError as refused:
                print(refused.exit_code)
        print([entry.message_id + entry.state for entry in ledger.entries()])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        spend(2)
        ledger.release("m0")
        """
    )
    client = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert client.stdout.splitlines() == ["42", "42", "['m0reserved']"], client.stderr
    assert client.returncode == 0, client.stderr
    with LedgerReader(path) as reader:
        assert [(e.message_id, e.state) for e in reader.entries()] == [
            ("m0", "released"),
            ("m2", "reserved"),
        ]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LedgerError, match=r"Not a directory|File exists"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_damaged_ledger_is_not_begun_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    for kind in (Ledger, LedgerReader):
        with pytest.raises(LedgerError, match="not a database"):
            kind(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_ledger_of_another_version_is_left_alone(path: Path) -> None:
    with Ledger(path) as ledger:
        reserve(ledger, "m1")
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    for kind in (Ledger, LedgerReader):
        with pytest.raises(LedgerError, match="version 7"):
            kind(path)


def test_reading_where_there_is_none_makes_none(path: Path) -> None:
    with pytest.raises(LedgerError, match="unable to open"):
        LedgerReader(path)
    assert not path.exists()

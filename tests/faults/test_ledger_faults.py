"""Two clients, a full disk, a damaged file: the ledger refuses, and keeps what is there."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hanse.errors import LedgerBrokenError, LedgerError
from hanse_client.audit import AuditTrail, read_audit
from hanse_client.ledger import Entry, Ledger, read_ledger
from hanse_client.ledger.verify import verify_ledger

from tests.charges import BUDGET, DATA, SMALL, reserve
from tests.faults.disks import full_beyond
from tests.harbour import Harbour, job, site


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


def states(entries: list[Entry]) -> list[tuple[str, str]]:
    return [(entry.instruction.message_id, entry.state) for entry in entries]


# --- processes ------------------------------------------------------------------------------


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
    Ledger(path).close()


def test_it_can_be_read_and_verified_while_a_client_holds_it(path: Path) -> None:
    trail = path.with_name("audit.jsonl")
    with Ledger(path) as ledger:
        ledger.anchor(AuditTrail(trail))
        reserve(ledger, "m1")
        assert read_ledger(path).statement(DATA, BUDGET) == ledger.statement(DATA, BUDGET)
        reserve(ledger, "m2")
        assert len(read_ledger(path).entries()) == 2
        assert verify_ledger(path, trail, BUDGET.delta).told == 3


CLIENT = dedent(
    """
    import sys
    from pathlib import Path
    from hanse_client.audit import AuditTrail
    from hanse_client.ledger import Ledger
    from hanse_client.site import Budget
    from tests.charges import SMALL, reserve

    path, start = Path(sys.argv[1]), int(sys.argv[2])
    with Ledger(path) as ledger:
        ledger.anchor(AuditTrail(path.with_name("audit.jsonl")))
        for number in range(start, start + 1000):
            charge = reserve(ledger, f"m{number}", charge=SMALL, budget=Budget(epsilon=100.0))
            print("trained", number, flush=True)
            ledger.release(charge)
            print("left", number, flush=True)
    """
)


def test_killed_at_any_time_it_never_counts_too_little(path: Path) -> None:
    moments = random.Random(20)
    for start in (0, 1000):
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        said = client.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.2))
        client.kill()
        said += client.communicate()[0]
        whole_lines = said[: said.rindex("\n")].splitlines()  # killed, it may stop in a word
        entries = {each.instruction.message_id: each for each in read_ledger(path).entries()}
        for line in whole_lines:
            what, _, number = line.partition(" ")
            assert f"m{number}" in entries, f"{what} without a charge"
            assert what != "left" or entries[f"m{number}"].state == "released"
        open_entries = [entry for entry in entries.values() if entry.state == "reserved"]
        assert len(open_entries) <= start // 1000 + 1
        verify_ledger(path, path.with_name("audit.jsonl"), BUDGET.delta)


# --- disks ----------------------------------------------------------------------------------


def test_a_full_disk_refuses_and_keeps_what_is_there(path: Path) -> None:
    with Ledger(path) as ledger:
        first = reserve(ledger, "m0", charge=SMALL)
        written = path.with_name(path.name + "-wal").stat().st_size

        def spend() -> object:
            return reserve(ledger, "m1", charge=SMALL)

        acts: tuple[Callable[[], object], ...] = (spend, lambda: ledger.release(first))
        with full_beyond(written + 100):
            for act in acts:
                with pytest.raises(LedgerError):
                    act()
        assert states(ledger.entries()) == [("m0", "reserved")]
        reserve(ledger, "m2", charge=SMALL)
        ledger.release(first)
    assert states(read_ledger(path).entries()) == [("m0", "released"), ("m2", "reserved")]


@pytest.mark.parametrize(("file", "step"), [("ledger.sqlite-wal", 1000), ("audit.jsonl", 100)])
def test_wherever_the_disk_ends_no_round_is_trained_without_its_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, step: int
) -> None:
    """The disk fills up a little later each time; the larger of the two files meets its end."""
    here = Harbour(tmp_path, site(tmp_path))
    if file == "audit.jsonl":
        here.runtime.audit.write("longer than the ledger", text="." * 2_000_000)
    small = job(privacy={"noise_multiplier": 60.0})
    here.send(small, name="warm")
    trained: list[str] = []
    trainer = here.runtime.order.trainer
    train = trainer.train

    def watched(*arguments: Any) -> Any:
        trained.append(here.runtime.order.message_id)
        return train(*arguments)

    monkeypatch.setattr(trainer, "train", watched)
    results = []
    for number in range(24):
        end = (tmp_path / file).stat().st_size + number * step
        with full_beyond(end), suppress(LedgerError):
            results += [str(number)] * here.send(small, name=str(number)).has_content()
        entries = here.ledger.entries()
        assert set(trained) <= {entry.instruction.message_id for entry in entries}
        if results[-1:] == [str(number)]:
            assert states(entries)[-1] == (str(number), "released")
    here.ledger.close()
    assert 0 < len(results) < 24, "some went through and some did not"
    told = {line["id"] for line in read_audit(here.audit) if line["event"] == "released"}
    assert set(results) <= told
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.anchor(AuditTrail(here.audit))
    found = verify_ledger(tmp_path / "ledger.sqlite", here.audit, BUDGET.delta)
    assert found.rows == found.told


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LedgerError, match=r"Not a directory|File exists"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", [Ledger, read_ledger])
def test_a_damaged_ledger_is_not_begun_anew(path: Path, opening: Callable[[Path], object]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerBrokenError, match="not a database"):
        opening(path)
    assert path.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize("opening", [Ledger, read_ledger])
def test_a_ledger_of_another_version_is_left_alone(
    path: Path, opening: Callable[[Path], object]
) -> None:
    with Ledger(path) as ledger:
        reserve(ledger, "m1")
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(LedgerError, match="version 7"):
        opening(path)


def test_reading_where_there_is_none_makes_none(path: Path) -> None:
    with pytest.raises(LedgerError, match="unable to open"):
        read_ledger(path)
    assert not path.exists()


def test_a_ledger_whose_making_a_crash_cut_short_says_so(path: Path) -> None:
    path.parent.mkdir()
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(LedgerError, match="nothing was written in it"):
        read_ledger(path)
    with Ledger(path) as ledger:
        reserve(ledger, "m1")
    assert len(read_ledger(path).entries()) == 1

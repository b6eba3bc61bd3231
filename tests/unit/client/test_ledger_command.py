"""`hanse client ledger`: what is spent, whether it is whole, and whose data this is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hanse.errors import DataChangedError, LedgerBrokenError
from hanse.examples import example
from hanse.records import fingerprints
from hanse_client.audit import AuditTrail
from hanse_client.books import audit_path, ledger_path
from hanse_client.cli import client_app
from hanse_client.ledger import Ledger
from hanse_client.site import Site, load_site
from typer.testing import CliRunner

from tests.charges import SMALL, reserve

Run = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Cleveland after one round, with a row more in its table."""
    for name in ("cleveland.toml", "cleveland.csv"):
        shutil.copy(example("heart") / name, tmp_path)
    site = load_site(tmp_path / "cleveland.toml")
    with Ledger(ledger_path(site)) as ledger:
        ledger.anchor(AuditTrail(audit_path(site)))
        ledger.release(reserve(ledger, "m1", data=fingerprints(site.data), charge=SMALL))
    with site.data.train.open("a") as file:
        file.write("63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n")
    return site


@pytest.fixture
def run(site: Site, tmp_path: Path) -> Run:
    """The command, with these options and this typed at it."""

    def invoke(*options: str, typed: str = "") -> Any:
        command = ["ledger", str(tmp_path / "cleveland.toml"), *options]
        return CliRunner().invoke(client_app, command, input=typed)

    return invoke


def accounts(run: Run, *options: str) -> list[int]:
    result = run("--json", *options)
    assert result.exit_code == 0, result.output
    return [len(account["data"]) for account in json.loads(result.stdout)["accounts"]]


def test_changed_data_goes_on_with_what_is_spent(run: Run) -> None:
    assert accounts(run) == [1]
    assert accounts(run, "--adopt", "1", "--verify") == [2]
    assert accounts(run, "--adopt", "1") == [2]


def test_new_people_are_confirmed(run: Run) -> None:
    refused = run("--adopt", "new", typed="n\n")
    assert refused.exit_code == 1
    assert "Is every person in it new" in refused.output
    assert accounts(run) == [1]
    assert run("--adopt", "new", typed="y\n").exit_code == 0
    assert accounts(run, "--verify") == [1, 1]


def test_a_script_says_yes(run: Run) -> None:
    assert run("--adopt", "new", "--yes").exit_code == 0
    assert accounts(run) == [1, 1]
    assert isinstance(run("--adopt", "new", "--yes").exception, DataChangedError)


def test_an_account_is_a_number_or_new(run: Run) -> None:
    assert run("--adopt", "first").exit_code == 2
    assert "there is no account 7" in str(run("--adopt", "7").exception)


def test_a_ledger_that_was_cut_off_is_told(run: Run, site: Site) -> None:
    assert "verified: each of the 3 rows" in run("--verify").stdout
    for left_over in site.state.glob("ledger.sqlite*"):
        left_over.unlink()
    assert isinstance(run().exception, LedgerBrokenError)  # and not "nothing is spent"
    broken = run("--verify").exception
    assert isinstance(broken, LedgerBrokenError)
    assert broken.exit_code == 46


def test_a_trail_that_was_cut_off_is_told(site: Site, tmp_path: Path) -> None:
    def verified() -> Any:
        command = ["audit", str(tmp_path / "cleveland.toml"), "--verify"]
        return CliRunner().invoke(client_app, command, env={"COLUMNS": "200"})

    told = "verified: {}; each follows from the one before it, and they tell of every row of the "
    trail = audit_path(site)
    lines = trail.read_text().splitlines(keepends=True)
    assert told.format("3 lines") + "ledger, and of each of 0 replies" in verified().stdout

    trail.write_text("".join(lines[:2]))  # a crash leaves it so
    assert told.format("2 lines") + "ledger but its last, which the next" in verified().stdout
    for left in (lines[:1], []):
        trail.write_text("".join(left))
        assert isinstance(verified().exception, LedgerBrokenError)
    trail.unlink()
    assert isinstance(verified().exception, LedgerBrokenError)

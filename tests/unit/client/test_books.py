"""What the administrator's books show: every entry of the ledger, every line of the trail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hanse.errors import LedgerBrokenError
from hanse.privacy.accounting import Charge
from hanse.records import Data
from hanse_client.audit import AuditTrail, read_audit
from hanse_client.books import (
    adopt_data,
    audit_path,
    audit_result,
    audit_view,
    ledger_path,
    ledger_result,
    ledger_view,
)
from hanse_client.ledger import Ledger
from hanse_client.site import Budget, Site, Tls
from rich.console import Console, RenderableType

from tests.charges import DATA, reserve

RUN = 2**63 + 5


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(
        name="cleveland",
        coordinator="localhost:9443",
        state=tmp_path / "state",
        tls=Tls(ca=tmp_path, certificate=tmp_path, key=tmp_path),
        data=Data(train=tmp_path / "train.csv"),
        budget=Budget(epsilon=8.0),
    )


def printed(view: RenderableType) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def spend(site: Site) -> None:
    charge = Charge(noise_multiplier=4.0, sampling_rate=0.5, steps=3)
    with Ledger(ledger_path(site)) as ledger:
        ledger.anchor(AuditTrail(audit_path(site)))
        kept, _, failed = (
            reserve(ledger, f"message-{number}", server_round=number, charge=charge)
            for number in range(1, 4)
        )
        ledger.release(kept)
        ledger.take_back(failed)
        reserve(ledger, "message-4", kind="evaluate", charge=charge)
        ledger.adopt(("c" * 64,), 1)


def test_nothing_is_spent(site: Site) -> None:
    result = ledger_result(site)

    assert result["accounts"] == []
    assert "nothing is spent" in printed(ledger_view(result))
    assert not ledger_path(site).exists(), "looking makes no ledger"


def test_what_was_spent_charge_by_charge(site: Site) -> None:
    spend(site)

    result = ledger_result(site)
    text = printed(ledger_view(result))

    (account,) = result["accounts"]
    assert [version["fingerprint"] for version in account["data"]] == [DATA, "c" * 64]
    assert (account["rounds"], account["evaluations"]) == (2, 1)
    assert account["epsilon"] > 0
    assert account["epsilon"] + account["left"] == pytest.approx(8.0)
    states = ["released", "reserved", "taken back", "reserved"]
    assert [entry["state"] for entry in account["entries"]] == states
    assert [entry["run"] for entry in account["entries"]] == [str(RUN)] * 4, "JSON has 53 bits"
    assert "verified" not in result
    for fact in ("cleveland", "account 1", "2 rounds and 1 evaluation,", "c" * 12, "taken back"):
        assert fact in text
    for fact in (DATA[:12], f"{account['epsilon']:.4f}", str(RUN), "reserved", "0.5"):
        assert fact in text


def test_a_verified_ledger_says_so(site: Site) -> None:
    spend(site)

    result = ledger_result(site, verify=True)
    text = printed(ledger_view(result))

    assert result["verified"]["rows"] == result["verified"]["told"] == 8
    assert result["verified"]["recounted"] == {1: result["accounts"][0]["epsilon"]}
    assert result["verified"]["digest"] in text
    assert "each of the 8 rows" in text


def test_an_administrators_answer_is_kept(site: Site) -> None:
    spend(site)
    site.data.train.write_text("1,2\n")

    adopt_data(site, None)
    adopt_data(site, 1)

    assert [account["account"] for account in ledger_result(site, verify=True)["accounts"]] == [1]
    last = [line["event"] for line in read_audit(audit_path(site))][-2:]
    assert last == ["account_opened", "data_adopted"]


def test_the_trail_shows_what_left_and_why_not(site: Site) -> None:
    trail = AuditTrail(audit_path(site))
    metrics = {"metrics": {"loss": 0.5, "accuracy": 0.8, "epsilon": 1.0}}
    kinds = {"public": ["epsilon"], "noised": ["loss"], "exact": ["accuracy"]}
    trail.write("released", type="train", round="3", bytes=528, metrics=metrics, kinds=kinds)
    trail.write("refused", type="train", label="budget", reason="the budget is spent")

    text = printed(audit_view(read_audit(audit_path(site))))

    for fact in ("released", "train", "528", "refused", "the budget is spent"):
        assert fact in text
    assert (text.count("(exact)"), text.count("(noised)")) == (1, 1)  # and none for epsilon
    assert "0.8" not in text  # names of metrics, not their values


def test_the_trail_shows_charges(site: Site) -> None:
    spend(site)

    text = printed(audit_view(read_audit(audit_path(site))))

    for fact in ("account opened", "charged", "charge taken", "data adopted", "account 1: aaa"):
        assert fact in text
    assert "3 steps, noise 4," in text


def test_an_empty_trail(site: Site) -> None:
    assert "nothing was asked" in printed(audit_view(read_audit(audit_path(site))))


@pytest.mark.parametrize(
    "line",
    [
        {"event": "asked"},
        {"time": 1.0},
        {"time": float("nan"), "event": "asked"},
        {"time": 1e300, "event": "asked"},
        {"time": [1], "event": "asked"},
        {"time": 1.0, "event": 2},
        {"time": 1.0, "event": "asked", "type": 3},
        {"time": 1.0, "event": "left", "metrics": 3},
        {"time": 1.0, "event": "left", "kinds": {"guessed": ["loss"]}},
        {"time": 1.0, "event": "left", "kinds": {"noised": [["loss"]]}},
        {"time": 1.0, "event": "charged", "steps": 1, "noise_multiplier": "x"},
        {"time": 1.0, "event": "account_opened", "fingerprints": [1]},
    ],
)
def test_a_line_that_cannot_be_shown_is_damage(site: Site, line: dict[str, object]) -> None:
    audit_path(site).parent.mkdir(parents=True, exist_ok=True)
    audit_path(site).write_text(json.dumps(line) + "\n")
    with pytest.raises(LedgerBrokenError, match="line 1 is damaged"):
        audit_result(site)


@pytest.mark.parametrize("more", [{"steps": 3}, {"fingerprints": ["a" * 64]}])
def test_a_line_that_tells_half_is_shown(site: Site, more: dict[str, object]) -> None:
    line = {"time": 1.0, "event": "charged", **more}
    assert "charged" in printed(audit_view([line]))


def test_a_round_is_shown_as_the_server_calls_it(site: Site) -> None:
    line = {"time": 1.0, "event": "released", "type": "train", "round": "1", "kinds": {}}
    audit_path(site).parent.mkdir(parents=True, exist_ok=True)
    audit_path(site).write_text(json.dumps(line) + "\n")
    assert audit_result(site)["lines"] == [line]

"""What the administrator's books show: every entry of the ledger, every line of the trail."""

from __future__ import annotations

from pathlib import Path

import pytest
from hanse.privacy.accounting import Charge
from hanse.records import Data
from hanse_client.audit import AuditTrail, read_audit
from hanse_client.books import audit_path, audit_view, ledger_path, ledger_result, ledger_view
from hanse_client.ledger import Ledger
from hanse_client.site import Budget, Site, Tls
from rich.console import Console, RenderableType

DATA = "a" * 64
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


def spend(site: Site, rounds: int) -> None:
    with Ledger(ledger_path(site)) as ledger:
        for number in range(1, rounds + 1):
            ledger.reserve(
                fingerprint=DATA,
                message_id=f"message-{number}",
                run_id=RUN,
                server_round=number,
                job_digest="b" * 64,
                charge=Charge(noise_multiplier=4.0, sampling_rate=0.5, steps=3),
                budget=site.budget,
            )
        ledger.release("message-1")


def test_nothing_is_spent(site: Site) -> None:
    result = ledger_result(site)

    assert result["data_sets"] == []
    assert "nothing is spent" in printed(ledger_view(result))
    assert not ledger_path(site).exists(), "looking makes no ledger"


def test_what_was_spent_entry_by_entry(site: Site) -> None:
    spend(site, 2)

    result = ledger_result(site)
    text = printed(ledger_view(result))

    (data_set,) = result["data_sets"]
    assert data_set["fingerprint"] == DATA
    assert data_set["rounds"] == 2
    assert data_set["epsilon"] > 0
    assert data_set["epsilon"] + data_set["left"] == pytest.approx(8.0)
    assert [entry["state"] for entry in data_set["entries"]] == ["released", "reserved"]
    assert [entry["run"] for entry in data_set["entries"]] == [str(RUN)] * 2, "JSON has 53 bits"
    for fact in ("cleveland", DATA[:12], f"{data_set['epsilon']:.4f}", str(RUN), "reserved", "0.5"):
        assert fact in text


def test_the_trail_shows_what_left_and_why_not(site: Site) -> None:
    trail = AuditTrail(audit_path(site))
    metrics = {"metrics": {"loss": 0.5, "accuracy": 0.8}}
    trail.write("released", type="train", round="3", bytes=528, metrics=metrics)
    trail.write("refused", type="train", label="budget", reason="the budget is spent")

    text = printed(audit_view(read_audit(audit_path(site))))

    for fact in ("released", "train", "528", "accuracy, loss", "refused", "the budget is spent"):
        assert fact in text
    assert "0.8" not in text  # names of metrics, not their values


def test_an_empty_trail(site: Site) -> None:
    assert "nothing was asked" in printed(audit_view(read_audit(audit_path(site))))

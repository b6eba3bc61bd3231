"""Hanse's two apps on Flower's own SuperLink and SuperNodes, as real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hanse.job import Job
from hanse.privacy.accounting import Charge, epsilon
from hanse_client.books import (
    audit_path,
    audit_result,
    ledger_result,
    metrics_path,
    outbox_path,
)
from hanse_client.outbox import Outbox
from hanse_client.site import load_site
from hanse_server.audit.view import audit_result as run_audit_result
from hanse_server.checkpoint import load_model
from hanse_server.simulate import SimulationRequest, run_simulation
from prometheus_client.parser import text_string_to_metric_families

from tests.superlink import StockFlower, Submitted

SITES = ("cleveland", "hungary")

TWO_ROUNDS = Charge(noise_multiplier=8.0, sampling_rate=1.0, steps=2)


def simulated(job: Job, flower: StockFlower, folder: Path) -> Path:
    sites = str(flower.folder / "sites")
    run_simulation(job, SimulationRequest(data=None, sites=2, partition=sites), folder)
    return folder


@pytest.mark.timeout(600)  # some twenty processes that import torch, one after the other
def test_a_private_and_a_plain_job_on_a_stock_superlink(tmp_path: Path) -> None:
    private = Submitted(tmp_path / "private", 2, rounds=2, private=True)
    plain = Submitted(tmp_path / "plain", 2, rounds=2, private=False)
    (tmp_path / "stock").mkdir()
    with StockFlower(tmp_path / "stock", SITES) as flower:
        flower.run_until(private, 1)
        flower.run(private)  # another run to Flower, the same to Hanse: it goes on
        check_the_books(private, flower)
        flower.run(plain)
        reference = simulated(plain.job, flower, tmp_path / "inline")
    models = [
        load_model(each / "models" / "last.safetensors") for each in (reference, plain.workspace)
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def check_the_books(run: Submitted, flower: StockFlower) -> None:
    """Ledgers, trails, outboxes and metrics, each against what the others tell."""
    history = run.history()
    assert [line["outcome"] for line in history] == ["completed"] * 2
    statement = json.loads((run.workspace / "models" / "last.json").read_text())["privacy"]
    trails = []
    for name, file in flower.sites.items():
        site = load_site(file)
        (account,) = ledger_result(site, verify=True)["accounts"]
        assert [entry["state"] for entry in account["entries"]] == ["released"] * 2
        stated = statement["sites"][name]
        assert account["epsilon"] == pytest.approx(stated["data_set"]["epsilon"], abs=1e-12)
        assert account["epsilon"] == pytest.approx(stated["run"]["epsilon"])
        assert account["epsilon"] == pytest.approx(epsilon([TWO_ROUNDS], 1e-5))
        assert account["epsilon"] == history[-1]["sites"][name]["metrics"]["epsilon"]
        audit_result(site, verify=True)
        with_outbox = Outbox(outbox_path(site))
        assert with_outbox.instructions() == []  # settled, and told so when the run ended
        with_outbox.close()
        check_the_metrics(metrics_path(site), epsilon=account["epsilon"])
        trails.append(audit_path(site))
    run_audit_result(run.workspace, site=None, number=None, verify=True, against=trails)


def check_the_metrics(path: Path, *, epsilon: float) -> None:
    """Those of two processes, one for each message, in one file."""
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }
    assert found["hanse_client_instructions_total", "result", "train"] == 2
    assert found["hanse_client_phase_duration_seconds_count", "training"] == 2
    assert found[("hanse_client_epsilon_spent",)] == pytest.approx(epsilon)
    assert found[("hanse_client_round",)] == 2
    assert ("hanse_client_connected",) not in found

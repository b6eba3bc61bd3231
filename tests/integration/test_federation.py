"""The whole federation as real processes: what it does, shows, keeps and leaves behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hanse.metrics import new_registry
from hanse.simulation import SimulatedSites
from hanse_client.audit import read_audit
from hanse_client.books import audit_path
from hanse_client.site import load_site
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.simulation import EngineName, simulate
from hanse_server.workspace import Workspace

from tests.hospitals import Hospitals, hanse, wait_until
from tests.integration.prometheus_server import Prometheus, run_prometheus

ROUNDS = 12
NAMES = ("cleveland", "hungary", "switzerland", "va-long-beach")


@dataclass(frozen=True)
class Ended:
    """A federation that ran to its end while Prometheus looked on."""

    hospitals: Hospitals
    seen: dict[str, float]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """A private run that the last hospital joins late and leaves for a while.

    Meanwhile the run stands still, and Prometheus is asked.
    """
    folder = tmp_path_factory.mktemp("private")
    with Hospitals(folder / "demo", rounds=ROUNDS, private=True) as hospitals:
        ports = hospitals.federation.metrics_ports
        targets = [f"127.0.0.1:{port}" for port in ports.values()]
        with run_prometheus(folder / "prometheus", server=targets[:1], client=targets[1:]) as seer:
            hospitals.start_sites(*NAMES[:3])
            hospitals.start_server()
            # The quorum is four: the server waits for the last one, and says so.
            wait_until(lambda: '"3 of 4 sites connected"' in _status(hospitals), 60)
            hospitals.start_sites(NAMES[3])
            hospitals.await_round(3)
            assert hospitals.stop(NAMES[3]) == 0, hospitals.log(NAMES[3])
            seen = _ask(seer)
            hospitals.start_sites(NAMES[3])
            code = hospitals.await_end("server")
            assert code == 0, hospitals.log("server")
            for name in NAMES:
                assert hospitals.stop(name) == 0, hospitals.log(name)
        yield Ended(hospitals, seen)


def _status(hospitals: Hospitals) -> str:
    return hanse("server", "status", "--workspace", str(hospitals.workspace), "--json").stdout


def _ask(prometheus: Prometheus) -> dict[str, float]:
    asked = {
        "targets up": "sum(up)",
        "round": "hanse_server_round",
        "connected": "sum(hanse_server_site_connected)",
        "results": 'sum(hanse_server_replies_total{outcome="result"})',
        "epsilon at a site": "max(hanse_client_epsilon_spent)",
        "epsilon told": "max(hanse_server_site_epsilon_spent)",
        "bytes up": "sum(hanse_server_received_bytes_total)",
        "bytes down": "sum(hanse_client_received_bytes_total)",
        "accuracy": 'hanse_server_model_metric{metric="accuracy",source="federated"}',
        "memory": 'min(process_resident_memory_bytes{job="hanse-client"})',
    }
    wait_until(lambda: bool(prometheus.query(asked["accuracy"])), 60)
    wait_until(lambda: prometheus.value(asked["targets up"]) == 4, 60)
    wait_until(lambda: prometheus.value(asked["connected"]) == 3, 60)
    return {name: prometheus.value(query) for name, query in asked.items()}


def test_a_real_prometheus_sees_the_federation(private: Ended) -> None:
    seen = private.seen
    assert seen["targets up"] == 4  # the server and three hospitals
    assert seen["connected"] == 3
    assert 3 <= seen["round"] < ROUNDS
    assert seen["results"] >= 12
    assert 0 < seen["epsilon told"] <= seen["epsilon at a site"] <= 3.0
    assert seen["bytes up"] > 3 * 4 * 500
    assert seen["bytes down"] > 3 * 4 * 500
    assert 0.5 < seen["accuracy"] <= 1.0
    assert seen["memory"] > 1e7


def test_each_ledger_holds_each_round_once(private: Ended) -> None:
    for name in NAMES:
        entries = private.hospitals.ledger(name)
        assert [entry["round"] for entry in entries] == list(range(1, ROUNDS + 1))
        assert {entry["state"] for entry in entries} == {"released"}


def test_the_models_statement_names_each_hospitals_epsilon(private: Ended) -> None:
    file = private.hospitals.workspace / "models" / "last.json"
    statement = json.loads(file.read_text())["privacy"]
    assert statement["private"]
    assert set(statement["sites"]) == set(NAMES)
    for site in statement["sites"].values():
        assert 0 < site["run"]["epsilon"] <= 3.0
        assert 0 < site["data_set"]["epsilon"] <= 3.0
        assert site["data_set"]["complete"]


def test_the_audit_trail_tells_all_that_left(private: Ended) -> None:
    for name, file in private.hospitals.federation.sites.items():
        lines = read_audit(audit_path(load_site(file)))
        events = {"released", "account_opened", "charged", "charge_released"}
        assert {line["event"] for line in lines} == events
        lines = [line for line in lines if line["event"] == "released"]
        kinds = Counter(line["type"] for line in lines)
        assert kinds["train"] == ROUNDS
        # The one that left for a while may have been away while a model was judged.
        assert kinds["evaluate"] in ({ROUNDS} if name != NAMES[3] else {ROUNDS - 1, ROUNDS})
        let_out = {key for line in lines for key in line["metrics"]["metrics"]}
        policy = load_site(file).policy
        listed = {"num-examples", *policy.release, *policy.release_exact}
        assert let_out - {"auc"} == listed - {"auc"}  # which is none where one class is held out
        assert let_out <= listed
        told = hanse("client", "audit", str(file), "--verify", "--json")
        assert told.returncode == 0, name
        assert json.loads(told.stdout)["verified"]


def test_the_outboxes_are_empty_once_all_is_settled(private: Ended) -> None:
    from hanse_client.outbox import Outbox

    for file in private.hospitals.federation.sites.values():
        outbox = Outbox(load_site(file).state / "outbox.sqlite")
        assert outbox.instructions() == []
        outbox.close()


def test_the_status_says_that_it_is_done(private: Ended) -> None:
    told = json.loads(_status(private.hospitals))
    assert (told["phase"], told["round"], told["awaited"]) == ("done", ROUNDS, [])


def test_the_report_opens_offline(private: Ended, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    workspace = str(private.hospitals.workspace)
    told = hanse("report", "--workspace", workspace, "--output", str(report))
    assert told.returncode == 0, told.stderr
    text = report.read_text()
    assert "cleveland" in text
    assert 'src="http' not in text


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    """A run without privacy, over the wire."""
    folder = tmp_path_factory.mktemp("plain") / "demo"
    with Hospitals(folder, rounds=ROUNDS, private=False) as hospitals:
        hospitals.start_server()
        hospitals.start_sites()
        assert hospitals.await_end("server") == 0, hospitals.log("server")
        yield hospitals


@pytest.mark.parametrize("engine", ["inline", "process"])
def test_a_simulation_ends_with_the_model_of_the_wire(
    plain: Hospitals, engine: EngineName, tmp_path: Path
) -> None:
    sites = plain.federation.sites
    simulated = SimulatedSites(names=tuple(sites), files=tuple(sites.values()))
    workspace = Workspace(tmp_path, plain.job)
    simulate(plain.job, simulated, workspace, ServerMetrics(new_registry()), engine=engine)
    over_the_wire = load_model(plain.workspace / "models" / "last.safetensors")
    here = load_model(workspace.models / "last.safetensors")
    assert set(here) == set(over_the_wire)
    for name, weight in over_the_wire.items():
        assert torch.equal(weight, here[name])


def test_a_run_without_privacy_says_so_everywhere(plain: Hospitals) -> None:
    statement = json.loads((plain.workspace / "models" / "last.json").read_text())["privacy"]
    assert not statement["private"]
    assert statement["statement"].startswith("no privacy")
    assert read_history(plain.workspace)[-1]["outcome"] == "completed"
    told = hanse("report", "--workspace", str(plain.workspace))
    assert told.returncode == 0, told.stderr
    assert "no privacy" in (plain.workspace / "report.html").read_text().lower()

"""Certificates of real processes are renewed, retired and shut out while they run."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import torch
from hanse.errors import NotRegisteredError
from hanse.metrics import new_registry
from hanse.simulation import SimulatedSites
from hanse_client.audit import read_audit
from hanse_client.books import audit_path
from hanse_client.renew import ask, take
from hanse_client.site import load_site
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.provisioning.federation import Provisioned, provision
from hanse_server.register import remove_site, retire_site
from hanse_server.simulation import simulate
from hanse_server.workspace import Workspace
from prometheus_client.parser import text_string_to_metric_families

from tests.hospitals import Hospitals, wait_until

ROUNDS = 12
EXPIRY = "certificate_expiry_timestamp_seconds"


def metric(hospitals: Hospitals, process: str, name: str, **labels: str) -> float | None:
    """A metric of a process, as Prometheus gets it."""
    url = hospitals.federation.metrics_urls()[process]
    try:
        with urllib.request.urlopen(url, timeout=10) as page:  # noqa: S310  our own, on loopback
            families = list(text_string_to_metric_families(page.read().decode()))
    except urllib.error.URLError:  # the process has not got so far
        return None
    values = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return values[0] if values else None


def renewed(hospitals: Hospitals, name: str) -> Provisioned:
    """The site's administrator asks, and the operator signs; and makes the server a new one."""
    request = ask(load_site(hospitals.federation.sites[name]), keep_key=False).request
    return provision(
        hospitals.federation.certificates,
        host="127.0.0.1",
        port=hospitals.federation.port,
        requests={name: request},
        renew_server=True,
        days=99,
    )


def test_a_run_in_which_certificates_are_renewed_is_the_run_without(tmp_path: Path) -> None:
    with Hospitals(tmp_path / "demo", rounds=ROUNDS, private=False) as hospitals:
        hospitals.start_server()
        hospitals.start_sites()
        hospitals.await_round(2, seconds=300)

        hospitals.pause("hungary")  # the round waits, however fast this machine is
        made = renewed(hospitals, "cleveland")
        take(load_site(hospitals.federation.sites["cleveland"]), made.renewed[0].kit)
        site, server = made.renewed[0].expires.timestamp(), made.server_expires.timestamp()
        own, seen = f"hanse_client_{EXPIRY}", f"hanse_server_site_{EXPIRY}"
        wait_until(lambda: metric(hospitals, "cleveland", own, certificate="site") == site, 60)
        own = f"hanse_server_{EXPIRY}"
        wait_until(lambda: metric(hospitals, "server", own, certificate="server") == server, 60)
        hospitals.resume("hungary")
        wait_until(lambda: metric(hospitals, "server", seen, site="cleveland") == site, 60)
        retire_site(made.layout.register, "cleveland")
        changed_by = len(read_history(hospitals.workspace))

        assert hospitals.await_end("server", 300) == 0, hospitals.log("server")
        for name in hospitals.federation.sites:
            assert hospitals.stop(name) == 0, hospitals.log(name)

    assert 2 <= changed_by < ROUNDS
    sites = hospitals.federation.sites
    for record in read_history(hospitals.workspace):
        assert {name: site["outcome"] for name, site in record["sites"].items()} == dict.fromkeys(
            sites, "result"
        )
    for file in sites.values():
        lines = read_audit(audit_path(load_site(file)))
        trained = [
            each for each in lines if each["event"] == "released" and each["type"] == "train"
        ]
        assert len(trained) == ROUNDS  # no instruction was carried out twice
    _ends_with_the_model_of(hospitals, tmp_path / "simulated")


def _ends_with_the_model_of(hospitals: Hospitals, folder: Path) -> None:
    sites = hospitals.federation.sites
    simulated = SimulatedSites(names=tuple(sites), files=tuple(sites.values()))
    workspace = Workspace(folder, hospitals.job)
    simulate(hospitals.job, simulated, workspace, ServerMetrics(new_registry()), engine="inline")
    over_the_wire = load_model(hospitals.workspace / "models" / "last.safetensors")
    here = load_model(workspace.models / "last.safetensors")
    assert set(here) == set(over_the_wire)
    for name, weight in over_the_wire.items():
        assert torch.equal(weight, here[name])


def test_a_site_that_is_removed_ends_within_seconds(tmp_path: Path) -> None:
    with Hospitals(tmp_path / "demo", rounds=2, private=False) as hospitals:
        hospitals.start_server()
        hospitals.start_sites("hungary")
        connected = "hanse_server_site_connected"
        wait_until(lambda: metric(hospitals, "server", connected, site="hungary") == 1, 120)

        remove_site(hospitals.federation.certificates / "sites.toml", "hungary")

        wait_until(lambda: metric(hospitals, "server", connected, site="hungary") == 0, 10)
        assert hospitals.await_end("hungary", 60) == NotRegisteredError.exit_code

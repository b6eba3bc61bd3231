"""Bad input at the command line: one clear error, its remedy, its exit code, nothing half-done."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hanse_server.history import read_history
from hanse_server.provisioning.authority import Authority

from tests.hospitals import Hospitals, hanse


def edit(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    assert count, f"{pattern} is not in {file.name}"
    file.write_text(text)


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Hospitals]:
    with Hospitals(tmp_path / "demo", rounds=3, private=True) as made:
        yield made


def refused(code: int, told: str, *arguments: str) -> None:
    """Run ``hanse``; it must end with ``code``, one error, its remedy, and no traceback."""
    done = hanse(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert told in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error (") == 1


def check(hospitals: Hospitals, name: str) -> dict[str, dict[str, object]]:
    """What `hanse client check` finds, by name of the check."""
    file, job = hospitals.federation.sites[name], hospitals.job_file
    done = hanse("client", "check", str(file), "--job", str(job), "--json")
    assert "Traceback" not in done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["findings"]}


def test_a_wrong_key_in_the_job(hospitals: Hospitals) -> None:
    edit(hospitals.job_file, "^rounds", "runds")
    told = "runds: unknown key (did you mean rounds?)"
    refused(10, told, "server", "run", str(hospitals.job_file), "--workspace", "nowhere")
    assert not Path("nowhere").exists()


def test_a_wrong_key_in_the_site_file(hospitals: Hospitals) -> None:
    site = hospitals.federation.sites["cleveland"]
    edit(site, "^max_steps", "max_step")
    refused(11, "policy.max_step: unknown key", "client", "run", str(site))


def test_an_unknown_task(hospitals: Hospitals) -> None:
    edit(hospitals.job_file, 'name = "tabular"', 'name = "tabulator"')
    sites = str(hospitals.job_file.parent)
    arguments = ("simulate", str(hospitals.job_file), "--partition", sites)
    refused(12, "'tabulator'", *arguments, "--workspace", str(sites) + "-run")


def test_no_federation(hospitals: Hospitals, tmp_path: Path) -> None:
    arguments = ("server", "run", str(hospitals.job_file), "--workspace", str(tmp_path / "w"))
    refused(13, "holds no federation", *arguments, "--federation", str(tmp_path / "none"))


def test_a_workspace_of_another_job(hospitals: Hospitals, tmp_path: Path) -> None:
    sites = ("--partition", str(hospitals.job_file.parent), "--workspace", str(tmp_path / "w"))
    assert hanse("simulate", str(hospitals.job_file), *sites).returncode == 0
    edit(hospitals.job_file, "^rounds = 3", "rounds = 4")
    federation = ("--federation", str(hospitals.federation.certificates))
    workspace = ("--workspace", str(tmp_path / "w"))
    refused(14, "rounds differ", "server", "run", str(hospitals.job_file), *workspace, *federation)
    refused(14, "begins anew", "simulate", str(hospitals.job_file), *sites)


Spoil = Callable[[Hospitals, Path], None]


def _wrong_columns(hospitals: Hospitals, site: Path) -> None:
    edit(site.with_name("cleveland.csv"), "^age,", "years,")


def _not_a_number(hospitals: Hospitals, site: Path) -> None:
    edit(site.with_name("cleveland.csv"), r"^63,Male", "nan,Male")


def _below_the_policy(hospitals: Hospitals, site: Path) -> None:
    edit(site, "^min_noise_multiplier = .*", "min_noise_multiplier = 99.0")


def _beyond_the_budget(hospitals: Hospitals, site: Path) -> None:
    edit(site, "^epsilon = .*", "epsilon = 0.1")


def _another_authority(hospitals: Hospitals, site: Path) -> None:
    stranger = Authority.create(site.parent / "stranger").issue_site("cleveland")
    (site.parent / "cleveland" / "certificate.pem").write_bytes(stranger.certificate_pem)
    (site.parent / "cleveland" / "key.pem").write_bytes(stranger.key_pem)


def _expired(hospitals: Hospitals, site: Path) -> None:
    authority = Authority.open(hospitals.federation.certificates / "authority")
    old = authority.issue_site("cleveland", days=1, start=datetime.now(UTC) - timedelta(days=3))
    (site.parent / "cleveland" / "certificate.pem").write_bytes(old.certificate_pem)
    (site.parent / "cleveland" / "key.pem").write_bytes(old.key_pem)


@pytest.mark.parametrize(
    ("spoil", "where", "code"),
    [
        (_wrong_columns, "data", 20),
        (_not_a_number, "data", 21),
        (_below_the_policy, "policy", 40),
        (_another_authority, "certificate", 30),
        (_expired, "certificate", 31),
    ],
)
def test_the_administrators_check_finds_it_first(
    hospitals: Hospitals, spoil: Spoil, where: str, code: int
) -> None:
    assert check(hospitals, "cleveland")[where]["ok"]
    spoil(hospitals, hospitals.federation.sites["cleveland"])
    found = check(hospitals, "cleveland")[where]
    assert not found["ok"]
    assert found["exit_code"] == code
    assert found["remedy"]


def test_a_coordinator_that_does_not_answer(hospitals: Hospitals) -> None:
    found = check(hospitals, "hungary")["coordinator"]
    assert (found["ok"], found["exit_code"]) == (False, 37)


def test_the_port_is_in_use(hospitals: Hospitals) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", hospitals.federation.port))
        taken.listen()
        hospitals.start_server()
        assert hospitals.await_end("server") == 36
        assert "error (port_in_use)" in hospitals.log("server")
        assert "Traceback" not in hospitals.log("server")


@pytest.mark.parametrize("whose", ["server", "cleveland"])
def test_the_metrics_port_is_in_use(hospitals: Hospitals, whose: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", hospitals.federation.metrics_ports[whose]))
        taken.listen()
        if whose == "server":
            hospitals.start_server()
        else:
            hospitals.start_sites(whose)
        assert hospitals.await_end(whose) == 36, hospitals.log(whose)


def test_two_clients_of_one_site_share_no_ledger(hospitals: Hospitals) -> None:
    hospitals.start_sites("cleveland")
    hospitals.await_log("cleveland", "cleveland|coordinator|waiting")
    site = hospitals.federation.sites["cleveland"]
    refused(42, "ledger", "client", "run", str(site))


def test_the_rest_of_the_federation_goes_on(hospitals: Hospitals) -> None:
    """Two of four hospitals cannot take part, each for another reason; two train to the end."""
    sites = hospitals.federation.sites
    _wrong_columns(hospitals, sites["cleveland"])
    _beyond_the_budget(hospitals, sites["hungary"])
    edit(hospitals.job_file, "^quorum = 4", "quorum = 2\navailable = 4")
    hospitals.start_server()
    hospitals.start_sites()
    assert hospitals.await_end("server") == 0, hospitals.log("server")
    history = read_history(hospitals.workspace)
    assert [line["outcome"] for line in history] == ["completed"] * 3
    last = history[-1]["sites"]
    assert last["cleveland"]["outcome"] == "data"
    assert last["cleveland"]["reason"] == "data"  # no word of the data leaves the site
    assert last["hungary"]["outcome"] == "budget"
    assert last["switzerland"]["outcome"] == last["va-long-beach"]["outcome"] == "result"
    assert hospitals.ledger("cleveland") == hospitals.ledger("hungary") == []
    assert "age" in hospitals.log("cleveland")  # its administrator is told which column


def test_a_site_that_was_removed_is_shut_out_while_the_server_runs(tmp_path: Path) -> None:
    with Hospitals(tmp_path / "demo", rounds=100_000, private=False) as hospitals:
        edit(hospitals.job_file, "^quorum = 4", "quorum = 3\navailable = 3")
        for file in hospitals.federation.sites.values():
            edit(file, "^max_rounds = .*", "max_rounds = 100000")
        hospitals.start_server()
        hospitals.start_sites()
        hospitals.await_round(1)
        federation = ("--federation", str(hospitals.federation.certificates))
        assert hanse("provision", "--remove", "hungary", *federation).returncode == 0
        assert hospitals.await_end("hungary") == 32, hospitals.log("hungary")
        done = len(read_history(hospitals.workspace))
        hospitals.await_round(done + 3)
        assert "hungary" not in read_history(hospitals.workspace)[-1]["sites"]

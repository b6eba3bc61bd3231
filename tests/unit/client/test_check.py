"""What an administrator's check finds, before anything leaves the site."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hanse.aggregation import Encoding
from hanse.errors import NameTakenError
from hanse.examples import example
from hanse.job import load_job
from hanse.privacy.accounting import Charge
from hanse.records import fingerprints
from hanse_client import check
from hanse_client.audit import AuditTrail
from hanse_client.books import audit_path, ledger_path
from hanse_client.check import Finding, check_site
from hanse_client.ledger import Instruction, Ledger
from hanse_client.link import Coordinator, Greeting
from hanse_client.site import Site, load_site
from hanse_server.provisioning.authority import Authority

from tests.charges import reserve

JOB = load_job(example("heart") / "job.toml")


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    """The site file of Cleveland, with its data and a certificate; nothing answers it."""
    for name in ("cleveland.toml", "cleveland.csv"):
        shutil.copy(example("heart") / name, tmp_path)
    authority = Authority.create(tmp_path / "authority")
    issued = authority.issue_site("cleveland")
    folder = tmp_path / "cleveland"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    (folder / "certificate.pem").write_bytes(issued.certificate_pem)
    (folder / "key.pem").write_bytes(issued.key_pem)
    (folder / "key.pem").chmod(0o600)
    return tmp_path / "cleveland.toml"


def found(site_file: Path, *, with_job: bool = True) -> dict[str, Finding]:
    findings = check_site(load_site(site_file), JOB if with_job else None)
    return {finding.name: finding for finding in findings}


def edit(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    assert count == 1
    file.write_text(text)


def ledger_of(site: Site) -> Ledger:
    ledger = Ledger(ledger_path(site))
    ledger.anchor(AuditTrail(audit_path(site)))
    return ledger


def test_everything_is_tried_though_one_thing_fails(site_file: Path) -> None:
    findings = found(site_file)

    assert list(findings) == [
        *("data", "policy", "certificate", "coordinator"),
        *("device", "budget", "leaves the site"),
    ]
    assert [name for name, finding in findings.items() if not finding.ok] == ["coordinator"]
    assert findings["coordinator"].exit_code == 37
    assert findings["coordinator"].remedy


def test_the_facts_of_a_site_and_a_job(site_file: Path) -> None:
    findings = found(site_file)

    assert "227 records to train on, 77 held out" in findings["data"].message
    assert "heart: 40 rounds of 1 step, noise multiplier 8.7" in findings["policy"].message
    assert "epsilon 3 at delta 1e-05; nothing is spent" in findings["budget"].message
    assert "a weight of 1.0" in findings["leaves the site"].message
    told = findings["leaves the site"].message
    assert "with noise where they are of private records: epsilon, epsilon_left" in told
    assert "as they are, outside the budget: accuracy, auc, loss" in told


def test_the_form_in_which_an_update_leaves_is_told(
    site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the update of each round, a weight" in found(site_file)["leaves the site"].message
    encoding = Encoding(name="int8", trainable_only=True)
    encoded = JOB.model_copy(update={"encoding": encoding})
    monkeypatch.setitem(globals(), "JOB", encoded)
    told = found(site_file)["leaves the site"].message
    assert "round, encoded as int8, without what is frozen, a weight" in told


def test_metrics_that_cannot_be_noised_are_told_before_any_round(site_file: Path) -> None:
    edit(site_file, r"^release = \[", 'release = ["loss", ')
    edit(site_file, "^release_exact = .*", "")
    edit(site_file, r'^release = \["loss", ', 'release = ["loss", "auc", ')
    findings = found(site_file)
    assert "; not auc, which cannot be noised" in findings["leaves the site"].message
    assert "not auc" not in found(site_file, with_job=False)["leaves the site"].message
    # The target epsilon of 3 is for 40 evaluations, too.
    assert "noise multiplier 8.9" in findings["policy"].message


def test_without_a_job_no_record_is_read(site_file: Path) -> None:
    (site_file.parent / "cleveland.csv").write_text("not,a,table\n")

    findings = found(site_file, with_job=False)

    assert findings["data"].ok
    assert "--job" in findings["data"].message
    assert "tabular" in findings["policy"].message


def test_what_the_ledger_thinks_of_the_data(site_file: Path) -> None:
    site = load_site(site_file)
    charge = Charge(noise_multiplier=8.0, sampling_rate=0.5, steps=1)
    with ledger_of(site) as ledger:
        reserve(ledger, "m1", data=fingerprints(site.data), charge=charge)
    finding = found(site_file, with_job=False)["budget"]
    assert "is spent on this data, account 1, in 1 round" in finding.message

    with site.data.train.open("a") as file:
        file.write("63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n")
    finding = found(site_file, with_job=False)["budget"]

    assert (finding.ok, finding.exit_code) == (False, 45)
    assert "is not known to the ledger" in finding.message
    assert "--adopt 1" in finding.remedy


def test_a_job_that_the_budget_does_not_cover(site_file: Path) -> None:
    edit(site_file, "^epsilon = .*", "epsilon = 2.5")

    finding = found(site_file)["budget"]

    assert (finding.ok, finding.exit_code) == (False, 41)
    assert "40 rounds of heart would bring epsilon to 3" in finding.message
    assert found(site_file, with_job=False)["budget"].ok


def test_of_a_run_under_way_what_is_still_to_come_is_held_against_the_budget(
    site_file: Path,
) -> None:
    site = load_site(site_file)
    noise = re.search(r"noise multiplier ([\d.]+)", found(site_file)["policy"].message)
    assert noise is not None
    # A hair more noise than the message rounds away, so that 40 rounds fit.
    charge = Charge(noise_multiplier=float(noise[1]) + 0.001, sampling_rate=1.0, steps=1)
    with ledger_of(site) as ledger:
        for number in range(1, JOB.rounds + 1):
            asked = Instruction(
                message_id=f"m{number}",
                run_id=7,
                server_round=number,
                job_digest=JOB.digest,
                kind="train",
            )
            data = fingerprints(site.data)
            ledger.release(ledger.reserve(data, asked, charge=charge, budget=site.budget))
            if number == 15:
                assert found(site_file)["budget"].ok

    finding = found(site_file)["budget"]  # the run is over: this is about another one

    assert (finding.ok, finding.exit_code) == (False, 41)
    assert "40 more rounds of heart would bring epsilon to 4" in finding.message


def test_a_ledger_that_was_removed_is_not_an_empty_one(site_file: Path) -> None:
    site = load_site(site_file)
    with ledger_of(site) as ledger:
        reserve(ledger, "m1", data=fingerprints(site.data))
    for left_over in site.state.glob("ledger.sqlite*"):
        left_over.unlink()

    finding = found(site_file, with_job=False)["budget"]

    assert (finding.ok, finding.exit_code) == (False, 46)


def test_a_public_count_is_told(site_file: Path) -> None:
    edit(site_file, "^count = .*", 'count = "public"')

    assert "the number of records" in found(site_file)["leaves the site"].message


def test_a_policy_that_does_not_allow_the_job(site_file: Path) -> None:
    edit(site_file, "^max_rounds = .*", "max_rounds = 3")

    finding = found(site_file)["policy"]

    assert (finding.ok, finding.exit_code) == (False, 40)


def test_a_key_that_others_can_read(site_file: Path) -> None:
    assert found(site_file)["certificate"].ok
    (site_file.parent / "cleveland" / "key.pem").chmod(0o640)

    finding = found(site_file)["certificate"]

    assert (finding.ok, finding.exit_code) == (False, 30)
    assert "key.pem: its mode is 0640" in finding.message
    assert finding.remedy.startswith("chmod 600 ")


@pytest.mark.parametrize("taken", [False, True])
def test_a_coordinator_that_answers(
    site_file: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    def greet(coordinator: Coordinator) -> Greeting:
        if taken:
            raise NameTakenError("cleveland is connected")
        return Greeting(versions={"hanse": "0.9"}, job="heart")

    monkeypatch.setattr(check, "greet", greet)

    finding = found(site_file)["coordinator"]

    assert finding.ok
    told = "its client is connected already" if taken else "it runs hanse 0.9, job heart"
    assert told in finding.message

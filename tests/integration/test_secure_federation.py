"""Hospitals that sum their updates: real processes over the link, and `hanse simulate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hanse.aggregation import SecureAggregation
from hanse.examples import example
from hanse.job import load_job
from hanse.metrics import new_registry
from hanse.secagg.messages import SHARES
from hanse.simulation import SimulatedSites
from hanse_client.audit import read_audit
from hanse_client.books import audit_path
from hanse_client.secagg import certified, pin_of
from hanse_client.site import load_site
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.simulation import simulate
from hanse_server.simulation.sites import sites_of_folder
from hanse_server.workspace import Workspace

from tests.hospitals import Hospitals, environment, hanse

SECURE = """
[secure_aggregation]
enabled = true
stage_deadline = 60.0
"""
WITHOUT_PRIVACY = example("heart") / "job-without-privacy.toml"
KILLED_BEFORE_TRAINING = """
import os, signal, sys
from hanse.cli import main
from hanse_client.secagg.session import Session
Session.begin_training = lambda self, sharers: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["hanse", "client", "run", sys.argv[1]]
main()
"""


def ask_for_it(job: Path, *, deadline: float = 60.0, quorum: int = 4) -> None:
    """Put secure aggregation into a job file."""
    text = job.read_text().replace("deadline = 120.0", f"deadline = {deadline}")
    assert "quorum = 4" in text
    text = text.replace("quorum = 4", f"quorum = {quorum}\navailable = 4")
    job.write_text(text + SECURE)


def pins_of(hospitals: Hospitals) -> list[str]:
    """What the hospitals tell each other over the telephone."""
    files = hospitals.federation.sites.values()
    shown = [pin_of(certified(load_site(file))) for file in files]
    told = json.loads(hanse("client", "identity", str(next(iter(files))), "--json").stdout)
    assert (told["site"], told["key_fingerprint"]) == shown[0]
    return [f'{name} = "{fingerprint}"' for name, fingerprint in shown]


def test_hospitals_sum_their_updates_and_pin_each_other(tmp_path: Path) -> None:
    with Hospitals(tmp_path, rounds=2, private=True) as hospitals:
        ask_for_it(hospitals.job_file)
        pins = pins_of(hospitals)
        for file in hospitals.federation.sites.values():
            table = "\n".join(["[policy.secure_aggregation]", "required = true", "min_sites = 4"])
            peers = "\n".join(["[policy.secure_aggregation.peers]", *pins])
            file.write_text(f"{file.read_text()}\n{table}\n{peers}\n")
        hospitals.start_server()
        hospitals.start_sites()
        assert hospitals.await_end("server") == 0
        history = read_history(hospitals.workspace)
        assert [line["outcome"] for line in history] == ["completed"] * 2
        assert all(site["outcome"] == "result" for site in history[-1]["sites"].values())
        for file in hospitals.federation.sites.values():
            left = [line for line in read_audit(audit_path(load_site(file))) if line.get("bytes")]
            assert [line["masked"] for line in left] == [True, True]
        audited = hospitals.audited()
        assert audited["verified"]["folded"] == 8
        assert len(audited["agreed"]) == 4


def test_a_hospital_killed_after_sharing_its_keys_is_only_left_out(tmp_path: Path) -> None:
    with Hospitals(tmp_path, rounds=1, private=False) as hospitals:
        ask_for_it(hospitals.job_file, deadline=5.0, quorum=3)
        hospitals.start_server()
        hospitals.start_sites("cleveland", "hungary", "va-long-beach")
        killed = subprocess.Popen(
            [
                sys.executable,
                "-c",
                KILLED_BEFORE_TRAINING,
                str(hospitals.federation.sites["switzerland"]),
            ],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert hospitals.await_end("server") == 0
        finally:
            killed.kill()
        assert killed.wait() == -9
        (line,) = read_history(hospitals.workspace)
        session = json.loads((hospitals.workspace / "session.json").read_text())
        assert "switzerland" in session["stages"][SHARES]
        assert line["outcome"] == "completed"
        outcomes = {name: site["outcome"] for name, site in line["sites"].items()}
        assert outcomes.pop("switzerland") == "missing"
        assert set(outcomes.values()) == {"result"}
        secure = load_model(hospitals.workspace / "models" / "last.safetensors")
    three = sites_of_folder(example("heart"))
    files = [file for file in three.files if file.stem != "switzerland"]
    left = three.model_copy(update={"names": tuple(outcomes), "files": tuple(files)})
    plain = simulated(WITHOUT_PRIVACY, left, tmp_path / "plain", rounds=1, quorum=3)
    for name, value in plain.items():
        assert (secure[name] - value).abs().max() < 1e-6


def simulated(
    job_file: Path, sites: SimulatedSites, folder: Path, **changes: Any
) -> dict[str, torch.Tensor]:
    """The model that a simulation ends with."""
    job = load_job(job_file)
    strategy = job.strategy.model_copy(update={"quorum": changes.pop("quorum", 4)})
    engine = changes.pop("engine", "inline")
    job = job.model_copy(update={"strategy": strategy, **changes})
    waived = sites.model_copy(update={"waived": True})
    workspace = Workspace(folder, job)
    simulate(job, waived, workspace, ServerMetrics(new_registry()), engine=engine)
    return load_model(folder / "models" / "last.safetensors")


def test_the_examples_job_is_simulated_with_sums(tmp_path: Path) -> None:
    """The example's settings; as the rounds are fewer, the noise is given as it is for all 40."""
    job = tmp_path / "job.toml"
    text = (example("heart") / "job.toml").read_text().replace("rounds = 40", "rounds = 3")
    text = text.replace("target_epsilon = 3.0", "noise_multiplier = 9.0")
    job.write_text(text + SECURE)
    folder = tmp_path / "run"
    asked = ("--partition", str(example("heart")), "--workspace", str(folder))
    told = hanse("simulate", str(job), *asked)
    assert told.returncode == 0, told.stderr
    history = read_history(folder)
    assert [line["outcome"] for line in history] == ["completed"] * 3
    assert history[-1]["federated"]
    private = history[-1]["sites"]["cleveland"]["metrics"]
    assert private["epsilon"] > 0, "the noise and its price are those of a plain round"


def test_engines_and_plain_rounds_end_with_the_same_model(tmp_path: Path) -> None:
    sites, secure = sites_of_folder(example("heart")), SecureAggregation(enabled=True)

    def model(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        return simulated(WITHOUT_PRIVACY, sites, tmp_path / name, rounds=2, **changes)

    plain = model("plain")
    inline = model("inline", secure_aggregation=secure)
    process = model("process", secure_aggregation=secure, engine="process")
    for name, value in plain.items():
        assert torch.equal(inline[name], process[name])
        assert (inline[name] - value).abs().max() < 1e-6

"""What the operator's commands print holds the facts of their JSON."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hanse.examples import example
from hanse.job import Privacy, load_job
from hanse_server.demo.comparison import Row
from hanse_server.demo.result import DemoResult
from hanse_server.history import WORKING, RoundRecord, SiteRound, Terms
from hanse_server.provisioning.federation import Provisioned, ProvisionedSite
from hanse_server.provisioning.layout import Layout
from hanse_server.provisioning.renewal import Ending
from hanse_server.status import Awaited, Refused, Status
from hanse_server.views import (
    endings_view,
    outcome_view,
    provisioned_view,
    run_outcome,
    status_view,
)
from hanse_server.workspace import Workspace
from rich.console import Console, RenderableType

JOB = load_job(example("heart") / "job.toml")


def printed(view: RenderableType, width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def record(number: int, sites: dict[str, SiteRound], **changes: Any) -> RoundRecord:
    facts: dict[str, Any] = {
        "outcome": "completed",
        "started_at": 1.0,
        "seconds": 1.5,
        "train": {},
        "federated": {},
        "central": {},
        "bytes_up": 1000,
        "bytes_down": 4000,
    }
    return RoundRecord(round=number, sites=sites, **facts | changes)


def result(epsilon: float) -> SiteRound:
    return SiteRound(outcome="result", seconds=0.1, metrics={"epsilon": epsilon})


def test_the_outcome_of_a_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, JOB)
    refused = SiteRound(outcome="budget", seconds=0.1, reason="budget")
    workspace.append(record(1, {"a": result(0.5), "b": result(0.7)}, federated={"loss": 0.4}))
    workspace.append(record(2, {"a": result(0.9), "b": refused}))

    outcome = run_outcome(JOB, tmp_path)
    text = printed(outcome_view(outcome))

    assert outcome["rounds"] == 2
    assert outcome["federated"] == {"loss": 0.4}  # of the last round that was judged
    assert outcome["sites"]["a"] == {"rounds": 2, "epsilon": 0.9}
    assert outcome["sites"]["b"] == {"rounds": 1, "epsilon": 0.7, "last_failure": "budget"}
    assert (outcome["bytes_up"], outcome["bytes_down"]) == (2000, 8000)
    for fact in ("0.4000", "at most 0.900 at a site", "3.0", "2.0 kB, 8.0 kB"):
        assert fact in text


def test_what_encodings_spared_is_told(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, JOB)
    sites = {"a": replace(result(0.5), encoding="int8", bytes=260, plain_bytes=1000)}
    plain = {"a": replace(result(0.5), bytes=1000, plain_bytes=1000)}

    workspace.append(record(1, plain))
    assert "updates" not in printed(outcome_view(run_outcome(JOB, tmp_path)))
    workspace.append(record(2, sites))

    outcome = run_outcome(JOB, tmp_path)
    assert outcome["encoded"] == {
        "encodings": ("int8", "plain"),
        "bytes": 1260,
        "plain_bytes": 2000,
    }
    assert "int8, plain: 1.3 kB, 63.0% of 2.0 kB" in printed(outcome_view(outcome))


def test_metrics_that_left_with_noise_are_marked(tmp_path: Path) -> None:
    terms = Terms(count="declared", noised=("loss",), exact=("auc",), noise_multiplier=50.0)
    judge = SiteRound(outcome="result", seconds=0.1, terms=terms)
    federated = {"loss": 2.1, "auc": 0.8}
    sites = {"a": result(0.5)}
    Workspace(tmp_path, JOB).append(record(1, sites, judged={"a": judge}, federated=federated))

    text = printed(outcome_view(run_outcome(JOB, tmp_path)))

    assert "loss (federated, with noise)" in text
    narrow = printed(outcome_view(run_outcome(JOB, tmp_path)), width=60)
    assert "…" not in narrow  # the model's path is told whole
    assert "auc (federated)" in text


def test_a_run_without_privacy_says_so(tmp_path: Path) -> None:
    job = JOB.model_copy(update={"privacy": Privacy(mechanism="none")})
    Workspace(tmp_path, job)

    assert "no privacy" in printed(outcome_view(run_outcome(job, tmp_path)))


def awaiting(**changes: Any) -> Status:
    facts: dict[str, Any] = {
        "phase": "training",
        "round": 3,
        "rounds": 40,
        "connected": ("a", "b"),
        "awaited": (Awaited(site="b", since=time.time() - 5, until=time.time() + 60),),
        "waiting_for": "b",
        "updated_at": time.time() - 2,
    }
    return Status(**facts | changes)


def test_the_status_names_who_is_awaited() -> None:
    text = printed(status_view(awaiting(), running=True))

    assert "round 3 of 40: training, waiting for b (as of 2 s ago)" in text
    assert "connected: a, b" in text
    assert "5 s" in text


def test_the_status_of_a_server_that_is_gone() -> None:
    text = printed(status_view(awaiting(), running=False))

    assert "no server runs on this workspace now; `hanse server run` goes on" in text
    assert "connected" not in text
    over = printed(status_view(awaiting(phase="done", waiting_for=""), running=False))
    assert "goes on" not in over


def test_waiting_is_said_once() -> None:
    status = awaiting(phase="waiting", waiting_for="1 of 4 sites connected", awaited=())

    text = printed(status_view(status, running=True))

    assert "round 3 of 40: waiting, 1 of 4 sites connected" in text


def test_what_was_provisioned_and_what_comes_next(tmp_path: Path) -> None:
    until = datetime(2030, 1, 2, tzinfo=UTC)
    site = ProvisionedSite(
        name="a",
        kit=Path("kits/a.zip"),
        key_in_kit=True,
        fingerprint="f" * 64,
        key_fingerprint="e" * 64,
        expires=until,
    )
    made = Provisioned(
        layout=Layout(Path("fed")),
        new_authority=True,
        new_server=True,
        server_expires=until,
        added=(site,),
        renewed=(replace(site, name="d", kit=Path("kits/d.pem")),),
        kept=("b",),
    )

    text = printed(provisioned_view(made, ["c"], ["g"]))

    for fact in ("kits/a.zip", "yes", "2030-01-02", "kept: b", "from now on: c", "fed"):
        assert fact in text
    for fact in ("renewed: d", "kits/d.pem", "e" * 64, "--retire d", "latest certificate only: g"):
        assert fact in text


def test_when_the_certificates_end() -> None:
    soon, late = (datetime.now(UTC) + timedelta(days=days, hours=1) for days in (3, 300))
    found = [
        Ending(whose="server", fingerprint="5" * 64, expires=late),
        Ending(whose="a", fingerprint="a" * 64, expires=soon),
        Ending(whose="a", fingerprint="b" * 64, expires=soon, earlier=True),
        Ending(whose="c", fingerprint="c" * 64, expires=None),
    ]

    lines = printed(endings_view(found)).splitlines()

    def told(start: str) -> str:
        (line,) = [line for line in lines if start in line]
        return line

    assert "300" in told("server")
    assert f"{soon:%Y-%m-%d}" in told("a" * 16)
    assert " 3 " in told("a" * 16)
    assert "before its renewal" in told("b" * 16)
    assert "not in sites.toml" in told("c" * 16)


def demo_result() -> DemoResult:
    def row(name: str, accuracy: float, epsilon: float | None = None) -> Row:
        return Row(model=name, accuracy=accuracy, auc=0.9, loss=0.4, epsilon=epsilon)

    outcome = {"rounds": 40, "bytes_up": 1000, "bytes_down": 2000, "seconds": 3, "workspace": "w"}
    return DemoResult(
        outcome=outcome,
        private=row("federation, private", 0.83, 2.9),
        baselines=[row("without", 0.85), row("pooled", 0.86), row("bern alone", 0.6)],
        ledgers={"bern": {"epsilon": 2.9, "delta": 1e-5, "rounds": 40}},
        report=Path("hanse-demo/report.html"),
        metrics={"server": "http://127.0.0.1:1/metrics"},
        seconds=45.0,
    )


def test_the_demo_ends_with_what_was_gained() -> None:
    told, text = demo_result().as_dict(), printed(demo_result().view())

    assert told["accuracy_alone"] == {"bern": 0.6}
    assert (told["accuracy_without_privacy"], told["accuracy_pooled"]) == (0.85, 0.86)
    facts = ("83.0%", "epsilon 2.90", "60.0%", "2.900", "1e-05", "report.html", "127.0.0.1:1")
    for fact in facts:
        assert fact in text
    assert "…" not in printed(demo_result().view(), width=80)


def test_the_status_names_whose_reply_was_left_out_and_why() -> None:
    norm = "the update's norm, 7.9, is above the largest, 2.6 (checks.max_update_norm)"
    refused = (Refused("b", 2, norm),)

    text = printed(status_view(awaiting(refused=refused), running=True))

    assert "last refused" in text
    assert "checks.max_update_norm" in text


def test_no_limit_is_said_so_and_another_day_is_named() -> None:
    day = time.time() + 3 * 24 * 3600
    endless, far = (Awaited(site="b", since=time.time(), until=until) for until in (math.inf, day))

    assert "no limit" in printed(status_view(awaiting(awaited=(endless,)), running=True))
    shown = printed(status_view(awaiting(awaited=(far,)), running=True))
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(day)) in shown


def test_who_is_at_work_still_has_not_failed(tmp_path: Path) -> None:
    working = SiteRound(outcome=WORKING, seconds=1.0)
    workspace = Workspace(tmp_path, JOB)
    workspace.append(record(1, {"a": working}))
    assert run_outcome(JOB, tmp_path)["sites"]["a"] == {"rounds": 0}

    workspace.append(record(2, {"a": result(0.5)}))
    assert "last_failure" not in run_outcome(JOB, tmp_path)["sites"]["a"]

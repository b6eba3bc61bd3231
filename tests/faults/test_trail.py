"""The server killed in mid-round: its trail holds, and agrees with each site's; no forgery does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hanse.errors import TrailError
from hanse.trail import chained_lines
from hanse_server.audit.account import Account
from hanse_server.audit.compare import compare
from hanse_server.audit.verify import verify_trail
from hanse_server.checkpoint import STATEMENT, load_stated, save_tensors
from hanse_server.workspace import audit_path, read_run

from tests.forged import Line, forge, told
from tests.hospitals import Hospitals, hanse, wait_until

ROUNDS = 6


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """A run whose server was killed while it awaited a reply, and started again."""
    with Hospitals(
        tmp_path_factory.mktemp("killed") / "demo", rounds=ROUNDS, private=True
    ) as hospitals:
        hospitals.start_sites()
        hospitals.start_server()
        hospitals.await_round(2)
        hospitals.pause("hungary")
        wait_until(lambda: hospitals.awaited() == ["hungary"], 30)
        hospitals.kill("server")
        hospitals.resume("hungary")
        hospitals.start_server()
        assert hospitals.await_end("server") == 0, hospitals.log("server")
        for name in hospitals.federation.sites:
            hospitals.stop(name)
    return hospitals


@pytest.fixture
def workspace(killed: Hospitals, tmp_path: Path) -> Path:
    """A copy of its workspace, to be tampered with."""
    return Path(shutil.copytree(killed.workspace, tmp_path / "run"))


def test_the_trail_agrees_with_the_run_and_with_each_site(killed: Hospitals) -> None:
    result = killed.audited()
    assert result["verified"]["rounds"] == ROUNDS
    assert result["verified"]["folded"] == 4 * ROUNDS
    assert set(result["verified"]["models"]) == {
        *(f"checkpoints/round-{n:05d}/model.safetensors" for n in (ROUNDS - 1, ROUNDS)),
        *("models/last.safetensors", "models/best.safetensors"),
    }
    assert {each["site"] for each in result["agreed"]} == set(killed.trails())
    assert all(each["accepted"] >= 2 * ROUNDS for each in result["agreed"])
    first, second = (line["after"] for line in told(result["lines"], "started"))
    assert first == 0
    assert 2 <= second < ROUNDS


def test_each_sites_own_check_passes(killed: Hospitals) -> None:
    for name, file in killed.federation.sites.items():
        done = hanse("client", "audit", str(file), "--verify", "--json")
        assert done.returncode == 0, (name, done.stdout)


def swapped(lines: list[str]) -> None:
    lines[3], lines[4] = lines[4], lines[3]


def removed(lines: list[str]) -> None:
    del lines[5]


def changed(lines: list[str]) -> None:
    at = next(at for at, line in enumerate(lines) if '"accepted"' in line)
    lines[at] = lines[at].replace('"bytes": ', '"bytes": 1')


@pytest.mark.parametrize("tamper", [swapped, removed, changed])
def test_the_chain_names_the_line(workspace: Path, tamper: Callable[[list[str]], None]) -> None:
    path = audit_path(workspace)
    lines = path.read_text().splitlines(keepends=True)
    tamper(lines)
    path.write_text("".join(lines))
    with pytest.raises(TrailError, match=r"line \d+ does not follow"):
        verify_trail(workspace)


def folded_twice(lines: list[Line]) -> None:
    first, second = told(lines, "kept")[:2]
    second["folded"] |= dict([next(iter(first["folded"].items()))])


def folded_unseen(lines: list[Line]) -> None:
    kept = told(lines, "kept")[-1]
    reply = next(iter(kept["folded"]))
    lines[:] = [
        line for line in lines if line["event"] != "accepted" or line["id"] != reply
    ]  # fmt: skip


def folded_but_not_told(lines: list[Line]) -> None:
    told(lines, "kept")[0]["folded"].popitem()


def never_let_in(lines: list[Line]) -> None:
    lines[:] = [
        line for line in lines if (line["event"], line.get("site")) != ("joined", "hungary")
    ]


def never_asked(lines: list[Line]) -> None:
    lines[:] = [line for line in lines if line["event"] != "instructed"]


def another_model(lines: list[Line]) -> None:
    told(lines, "kept")[-1]["model"] = "0" * 64


def a_round_less(lines: list[Line]) -> None:
    lines.remove(told(lines, "kept")[2])


def of_another_run(lines: list[Line]) -> None:
    for line in told(lines, "started"):
        line["run"] = "7"


def accepted_twice(lines: list[Line]) -> None:
    line = told(lines, "accepted")[-1]
    lines.insert(lines.index(line), dict(line))


def asked_as_another(lines: list[Line]) -> None:
    again = dict(told(lines, "instructed")[-1])
    lines.insert(-1, again | {"digest": "0" * 64})


def from_a_round_to_come(lines: list[Line]) -> None:
    told(lines, "started")[-1]["after"] = 5


def headless(lines: list[Line]) -> None:
    del lines[0]


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (folded_twice, "folded twice: in round 1 and in round 2"),
        (folded_unseen, "which was not accepted"),
        (folded_but_not_told, "round 1: history.jsonl has 4 train replies that counted"),
        (never_let_in, "a reply of hungary was accepted, which was not let in"),
        (never_asked, "which was asked of nobody"),
        (another_model, "does not hold the model that the trail tells of"),
        (a_round_less, "round 4 was kept after round 2"),
        (of_another_run, "it tells of run 7"),
        (accepted_twice, "was accepted twice"),
        (asked_as_another, "is told anew, and as another"),
        (from_a_round_to_come, "goes on after round 5, which was never kept"),
        (headless, "line 1 of the trail does not tell of a server's start"),
    ],
)
def test_a_forged_trail_is_found_though_its_chain_is_whole(
    workspace: Path, tamper: Callable[[list[Line]], None], named: str
) -> None:
    forge(audit_path(workspace), tamper)
    with pytest.raises(TrailError, match=named):
        verify_trail(workspace)


@pytest.mark.parametrize("name", ["last", "best"])
def test_an_exchanged_model_is_found(workspace: Path, name: str) -> None:
    path = workspace / "models" / f"{name}.safetensors"
    model, statement = load_stated(path)
    key = next(iter(model))
    save_tensors(
        model | {key: model[key] + torch.tensor(1e-6)}, path, {STATEMENT: json.dumps(statement)}
    )
    with pytest.raises(TrailError, match=rf"{name}.safetensors is not the model of round \d"):
        verify_trail(workspace)


def test_a_removed_trail_or_checkpoint_is_found(workspace: Path) -> None:
    for number in (ROUNDS - 1, ROUNDS):
        shutil.rmtree(workspace / "checkpoints" / f"round-{number:05d}")
    with pytest.raises(TrailError, match=f"the trail has {ROUNDS} rounds, the newest checkpoint"):
        verify_trail(workspace)
    audit_path(workspace).unlink()
    with pytest.raises(TrailError, match="has no audit trail"):
        verify_trail(workspace)


# --- what a site's trail gives away -----------------------------------------------------------


def server_changed_a_digest(lines: list[Line]) -> None:
    for line in told(lines, "accepted"):
        if line["site"] == "hungary" and line["type"] == "train":
            line["blake3"] = "0" * 64


def server_hides_what_it_asked(lines: list[Line]) -> None:
    hidden = {
        line["id"] for line in told(lines, "instructed")
        if line["site"] == "hungary" and line["type"] == "evaluate"
    }  # fmt: skip
    for line in told(lines, "kept"):
        line["judged"] = {each: site for each, site in line["judged"].items() if each not in hidden}
    lines[:] = [line for line in lines if line.get("id") not in hidden]


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (server_changed_a_digest, "was accepted with another content"),
        (server_hides_what_it_asked, "the server's trail does not tell that it was"),
    ],
)
def test_the_sites_trail_gives_a_forging_server_away(
    killed: Hospitals, workspace: Path, tamper: Callable[[list[Line]], None], named: str
) -> None:
    forge(audit_path(workspace), tamper)
    (workspace / "history.jsonl").unlink()  # a forger would have made it fit
    account = Account(str(read_run(workspace)["run_id"]))
    account.read(chained_lines(audit_path(workspace), TrailError))
    with pytest.raises(TrailError, match=named):
        compare(killed.trails()["hungary"], account)


def a_release_less(lines: list[Line]) -> None:
    lines.remove(told(lines, "released")[-1])


def another_metric(lines: list[Line]) -> None:
    for metrics in told(lines, "released")[-1]["metrics"].values():
        for name in metrics:
            metrics[name] += 1.0


def nothing(lines: list[Line]) -> None:
    lines.clear()


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (a_release_less, "does not tell that one left"),
        (another_metric, "accepted with another content"),
        (nothing, "tells nothing of run"),
    ],
)
def test_a_forging_site_is_found(
    killed: Hospitals,
    workspace: Path,
    tmp_path: Path,
    tamper: Callable[[list[Line]], None],
    named: str,
) -> None:
    copy = Path(shutil.copy(killed.trails()["cleveland"], tmp_path / "audit.jsonl"))
    forge(copy, tamper)
    _, account = verify_trail(workspace)
    with pytest.raises(TrailError, match=named):
        compare(copy, account)

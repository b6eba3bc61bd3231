"""Runs over Flower's Grid: names, losses, and runs that go on under another number of Flower's."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hanse.errors import (
    HanseError,
    JobError,
    PolicyError,
    ProtocolError,
    SecureAggregationError,
    SiteFileError,
    TrailError,
)
from hanse.flower import CONFIG, become_server_app
from hanse.superlink import HELLO, SLIP, Slip
from hanse.trail import trail_lines
from hanse_client.audit import read_audit
from hanse_client.books import audit_path, ledger_path, outbox_path
from hanse_client.ledger import read_ledger
from hanse_client.node import answer_message
from hanse_client.outbox import Outbox
from hanse_client.site import load_site
from hanse_server import checkpoint
from hanse_server.history import read_history
from hanse_server.superlink import link, nodes
from hanse_server.superlink.run import run_on_superlink
from hanse_server.workspace import audit_path as run_audit_path

from tests.fake_superlink import FakeSuperLink, context_of, node_of
from tests.superlink import HEART

Sites = dict[str, Path]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(link, "NODES_SECONDS", 0.02)
    monkeypatch.setattr(link, "SEND_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(nodes, "ASK_AGAIN_SECONDS", 0.2)


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    found = {}
    for name in ("cleveland", "hungary"):
        shutil.copyfile(HEART / f"{name}.csv", tmp_path / f"{name}.csv")
        text = (HEART / f"{name}.toml").read_text()
        text = re.sub(r"^coordinator = .*\n", "", text, flags=re.M)
        found[name] = tmp_path / f"{name}.toml"
        found[name].write_text(re.sub(r"^\[tls\]\n(?:.+\n)+", "", text, flags=re.M))
    return found


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    text = (HEART / "job.toml").read_text()
    text = re.sub(r"^rounds = .*", "rounds = 2", text, flags=re.M)
    text = re.sub(r"^quorum = .*", "quorum = 2", text, flags=re.M)
    text = re.sub(r"^target_epsilon = .*", "noise_multiplier = 8.0", text, flags=re.M)
    (tmp_path / "job.toml").write_text(text)
    return {"job": str(tmp_path / "job.toml"), "workspace": str(tmp_path / "run")}


def grid_of(sites: Sites, run_id: int = 99) -> FakeSuperLink:
    configs = {10 + at: node_of(file) for at, file in enumerate(sites.values())}
    return FakeSuperLink(configs, run_id)


def charges(sites: Sites) -> list[list[str]]:
    books = [read_ledger(ledger_path(load_site(file))) for file in sites.values()]
    return [[entry.state for entry in book.entries()] for book in books]


def outcomes(config: dict[str, Any]) -> list[list[str]]:
    history = read_history(Path(config["workspace"]))
    return [[site["outcome"] for site in line["sites"].values()] for line in history]


def test_messages_and_replies_that_are_lost_are_sent_again_and_charged_once(
    sites: Sites, config: dict[str, Any]
) -> None:
    grid = grid_of(sites)
    grid.lose, grid.lose_replies = {"train": 1}, {"train": 2, "evaluate": 1}
    run_on_superlink(grid, config)
    assert outcomes(config) == [["result"] * 2] * 2
    assert charges(sites) == [["released"] * 2] * 2
    assert len(grid.asked) == 2 * 2 * 2 + 4


def test_a_run_that_goes_on_takes_what_was_trained_from_the_outboxes(
    sites: Sites, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(folder: Path, made: checkpoint.Checkpoint) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            run_on_superlink(grid_of(sites, run_id=1), config)
    assert charges(sites) == [["released"]] * 2
    run_on_superlink(grid_of(sites, run_id=2), config)
    assert outcomes(config) == [["result"] * 2] * 2
    assert charges(sites) == [["released"] * 2] * 2
    for file in sites.values():
        lines = read_audit(audit_path(load_site(file)))
        released = [line["id"] for line in lines if line["event"] == "released"]
        assert len(released) == len(set(released)) == 4
        with closing(Outbox(outbox_path(load_site(file)))) as outbox:
            assert outbox.instructions() == []


def test_what_a_server_settled_and_could_not_tell_is_told_by_the_next(
    sites: Sites, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(FakeSuperLink):
        def push_messages(self, messages: Any) -> Any:
            for message in messages:
                slip = message.content.config_records[SLIP]
                message.content[SLIP] = ConfigRecord({**slip, "settled": []})
            return super().push_messages(messages)

    save = checkpoint.save

    def crash(folder: Path, made: checkpoint.Checkpoint) -> None:
        if made.progress.round == 2:
            raise KeyboardInterrupt
        save(folder, made)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            run_on_superlink(Deaf(grid_of(sites).nodes), config)
    other = "f" * 32  # of another run, in whose journal it stands
    for file in sites.values():
        with closing(Outbox(outbox_path(load_site(file)))) as outbox:
            assert len(outbox.instructions()) == 4
            outbox.put(other, b"", [])
    run_on_superlink(grid_of(sites, run_id=2), config)
    for file in sites.values():
        with closing(Outbox(outbox_path(load_site(file)))) as outbox:
            assert outbox.instructions() == [other]


def test_a_site_whose_node_is_another_by_now_is_asked_there(
    sites: Sites, config: dict[str, Any]
) -> None:
    class Restarting(FakeSuperLink):
        def pull_messages(self, message_ids: Any) -> Any:
            if len(self.asked) == 2 and 10 in self.nodes:  # the process of a node was killed
                self.nodes[12] = self.nodes.pop(10)
            return super().pull_messages(message_ids)

    configs = {10 + at: node_of(file) for at, file in enumerate(sites.values())}
    run_on_superlink(Restarting(configs), config)
    assert outcomes(config) == [["result"] * 2] * 2
    assert charges(sites) == [["released"] * 2] * 2


def test_a_name_is_one_nodes_and_who_gives_none_is_left_out(
    sites: Sites, config: dict[str, Any]
) -> None:
    grid = grid_of(sites)
    grid.nodes |= {20: grid.nodes[10], 21: {}}
    run_on_superlink(grid, config)
    assert outcomes(config) == [["result"] * 2] * 2
    assert charges(sites) == [["released"] * 2] * 2
    assert {message.metadata.dst_node_id for message in grid.asked} == {10, 11}
    lines = trail_lines(run_audit_path(Path(config["workspace"])), TrailError)
    away = {line["fingerprint"]: line["label"] for line in lines if line["event"] == "turned_away"}
    assert away == {"node 20": "name_taken"}


def test_a_run_whose_configuration_cannot_be_right_is_refused_by_name(
    sites: Sites, config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="not absolute"):
        run_on_superlink(grid_of(sites), {**config, "workspace": "runs/heart"})
    with pytest.raises(JobError, match="workspaces"):
        run_on_superlink(grid_of(sites), {**config, "workspaces": "x"})
    job = tmp_path / "job.toml"
    job.write_text(job.read_text() + "\n[secure_aggregation]\nenabled = true\n")
    with pytest.raises(SecureAggregationError, match="a process for each message"):
        run_on_superlink(grid_of(sites), config)


# --- the site's end ------------------------------------------------------------------------------


@pytest.fixture
def ask(sites: Sites) -> Callable[..., Message]:
    become_server_app(5)

    def asked(kind: str, slip: Slip | None, **node: Any) -> Message:
        content = RecordDict({CONFIG: ConfigRecord()})
        if slip is not None:
            content[SLIP] = slip.record()
        message = Message(content, 10, kind)
        return answer_message(message, context_of(node or node_of(sites["cleveland"]), message))

    return asked


def refused(reply: Message, error: type[HanseError], text: str) -> bool:
    return reply.error.code == error.exit_code and text in (reply.error.reason or "")


def slip(number: int = 1, **changes: Any) -> Slip:
    return Slip(**{"instruction": f"{number:032x}", "run_id": 7, **changes})


def test_what_is_not_of_hanses_server_app_is_refused(ask: Callable[..., Message]) -> None:
    assert refused(ask("train", None), ProtocolError, "not of Hanse's ServerApp")
    assert refused(ask("train", slip(), other=1), SiteFileError, "not told which site")
    assert refused(ask("train", slip(instruction="x")), ProtocolError, "malformed")


def test_a_stage_of_a_secure_round_is_refused_and_told(
    ask: Callable[..., Message], sites: Sites
) -> None:
    from hanse.secagg.messages import STAGES

    reply = ask(STAGES[0], slip(2))
    assert refused(reply, SecureAggregationError, "keeps no secrets")
    lines = read_audit(audit_path(load_site(sites["cleveland"])))
    assert lines[-1]["label"] == "secure_aggregation"


def test_what_was_answered_is_answered_again_until_it_is_settled(
    ask: Callable[..., Message], sites: Sites
) -> None:
    first = ask("query", slip())
    assert first.content.config_records[CONFIG]["site"] == "cleveland"
    again = ask("query", slip())
    assert again.content == first.content
    lines = read_audit(audit_path(load_site(sites["cleveland"])))
    assert [line["event"] for line in lines].count("released") == 1
    ask(HELLO, slip(2, settled=(slip().instruction,)))
    assert refused(ask("query", slip()), PolicyError, "answered and settled")

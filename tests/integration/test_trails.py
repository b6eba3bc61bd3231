"""The trail of a server that speaks to sites: what it tells of them, over restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hanse.errors import PolicyError, TrailError
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    METRICS,
    ROUND,
    WEIGHT,
    error_reply,
    to_metrics,
    to_record,
)
from hanse.identity import node_id_of
from hanse.trail import chained_lines
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import encode, make_header
from hanse_server.audit import ServerTrail
from hanse_server.audit.account import Account
from hanse_server.audit.compare import compare
from hanse_server.audit.verify import verify_trail
from hanse_server.checkpoint import last_round
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.history import RoundRecord, read_history
from hanse_server.register import remove_site
from hanse_server.rounds import RoundLoop
from hanse_server.workspace import Workspace
from torch import nn

from tests.contract.record_vectors import site_of
from tests.fleet import TASK, plane_job
from tests.forged import Line, lines_of, told
from tests.harbour import Harbour, job, site
from tests.integration.test_link_hostile import envelope, liar
from tests.loopback import RUN_ID, Loopback, RunningServer, wait_until

UPDATE = RecordDict(
    {
        "arrays": ArrayRecord({"w": Array("uint8", (3,), "raw", b"abc")}),
        METRICS: to_metrics({WEIGHT: 5.0}),
    }
)


class Federation:
    """A loopback federation whose server keeps a trail."""

    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback
        self.path = loopback.folder / "audit.jsonl"

    def server(self) -> RunningServer:
        """Start a server, or start it again."""
        self.trail = ServerTrail(self.path)
        self.trail.started(RUN_ID, "job", 0)
        return self.loopback.server(trail=self.trail)

    def lines(self, event: str) -> list[Line]:
        """What is told of an event by now."""
        self.trail.flush()
        return told(lines_of(self.path), event)

    def account(self) -> Account:
        """What the trail comes to."""
        self.trail.flush()
        account = Account(str(RUN_ID))
        account.read(chained_lines(self.path, TrailError))
        return account


@pytest.fixture
def federation(loopback: Loopback) -> Federation:
    return Federation(loopback)


def echo(asked: Message) -> Message:
    return Message(UPDATE, reply_to=asked)


def ask(server: RunningServer, name: str, *, timeout: float = 20.0) -> list[Message]:
    grid = server.grid()
    message = Message(UPDATE, node_id_of(name), "train", group_id="1")
    return list(grid.send_and_receive([message], timeout=timeout))


def test_an_exchange_is_told_from_end_to_end(federation: Federation) -> None:
    server = federation.server()
    federation.loopback.client("north", echo)
    server.await_sites("north")
    ask(server, "north")
    server.link.settle(keep=())
    (joined,), (asked,) = federation.lines("joined"), federation.lines("instructed")
    (accepted,), (settled,) = federation.lines("accepted"), federation.lines("settled")

    assert joined["fingerprint"] == federation.loopback.issue("north").fingerprint
    assert asked["digest"] == encode(UPDATE).digest.hex()
    for key in ("id", "site", "type", "round"):
        assert accepted[key] == asked[key]
    assert (asked["type"], asked["round"], asked["bytes"]) == ("train", "1", 3)
    assert (accepted["bytes"], accepted["weight"]) == (3, 5.0)
    assert settled["sites"] == {"north": [asked["id"]]}
    (arrived,) = federation.account().accepted[asked["id"]]
    assert arrived.bytes == 3


def test_the_lines_are_durable_before_an_instruction_is_sent(federation: Federation) -> None:
    found: list[list[Line]] = []

    def look(asked: Message) -> Message:
        found.append(told(lines_of(federation.path), "instructed"))  # nobody flushes here
        return Message(UPDATE, reply_to=asked)

    server = federation.server()
    federation.loopback.client("north", look)
    server.await_sites("north")
    ask(server, "north")

    assert [line["site"] for line in found[0]] == ["north"]


def test_a_refusal_a_late_and_a_lost_reply_are_told(federation: Federation) -> None:
    def refuse(asked: Message) -> Message:
        return error_reply(PolicyError("not that task"), asked)

    server = federation.server()
    federation.loopback.client("south", refuse)
    server.await_sites("south")
    ask(server, "south")
    (refused,) = federation.lines("refused")
    assert (refused["site"], refused["label"]) == ("south", "policy")
    assert "not that task" in refused["reason"]

    federation.loopback.issue("north")
    ask(server, "north", timeout=0.1)  # it is not there
    wait_until(lambda: len(federation.lines("abandoned")) == 1)
    server.link.settle(keep=())
    (abandoned,) = federation.lines("abandoned")

    async def answer() -> None:
        async with liar(federation.loopback, "north", held=[abandoned["id"]]) as stream:
            header = make_header(encode(Error(9)), envelope(abandoned["id"], site="north"))
            await stream.say(header=header)
            await stream.say(header=header)
            await stream.hear("settle")

    asyncio.run(answer())
    wait_until(lambda: len(federation.lines("late")) == 1)
    assert federation.lines("late")[0]["id"] == abandoned["id"]


def test_who_is_turned_away_or_sent_away_is_told(federation: Federation) -> None:
    server = federation.server()
    federation.loopback.client("stranger", echo, registered=False).await_end()
    wait_until(lambda: len(federation.lines("turned_away")) == 1)
    (stranger,) = federation.lines("turned_away")
    assert (stranger["site"], stranger["label"]) == ("stranger", "not_registered")
    assert stranger["fingerprint"] == federation.loopback.issue("stranger").fingerprint

    removed = federation.loopback.client("north", echo)
    server.await_sites("north")
    remove_site(federation.loopback.register, "north")
    removed.await_end()
    wait_until(lambda: len(federation.lines("left")) == 1)
    assert [line["site"] for line in federation.lines("turned_away")] == ["stranger", "north"]


def test_a_reply_that_breaks_the_protocol_is_told_as_refused(federation: Federation) -> None:
    server = federation.server()

    async def lie() -> None:
        async with liar(federation.loopback) as stream:
            asking = asyncio.create_task(asyncio.to_thread(ask, server, "liar"))
            instruction = (await stream.hear("header")).envelope
            name = pb.Envelope.FromString(instruction).message_id
            header = make_header(encode(UPDATE), envelope(name))
            await stream.say(header=header)
            await stream.say(chunk=pb.Chunk(message_id=name, data=b"xyz"))
            await asking

    asyncio.run(lie())
    (refused,) = federation.lines("refused")
    assert (refused["site"], refused["label"]) == ("liar", "wire")
    assert federation.lines("accepted") == []


def test_a_restarted_server_accepts_the_reply_again_and_both_trails_agree(
    federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    here = Harbour(tmp_path / "site", site(tmp_path / "site"))
    here._context.node_id = node_id_of("harbour")
    executed: list[str] = []

    def serve(asked: Message) -> Message:
        executed.append(asked.metadata.message_id)
        return here.app(asked, here._context)

    first = federation.server()
    federation.loopback.client("harbour", serve)
    first.await_sites("harbour")
    train(first)
    first.link.stop()
    federation.trail.flush()
    second = federation.server()
    second.await_sites("harbour")
    train(second)

    assert len(executed) == 1  # the second answer is the one in the outbox
    account = federation.account()
    assert [len(arrived) for arrived in account.accepted.values()] == [2]
    agreed = compare(here.audit, account)
    assert (agreed.site, agreed.answered, agreed.accepted) == ("harbour", 1, 1)


def train(server: RunningServer) -> None:
    """Have the harbour train one round, the same whenever it is asked."""
    grid, model = server.grid(), nn.Linear(1, 1)
    zeros = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()}
    config = ConfigRecord({JOB: job().instruction, ROUND: 1})
    content = RecordDict({ARRAYS: to_record(zeros), CONFIG: config})
    message = Message(content, node_id_of("harbour"), "train", group_id="1")
    (reply,) = grid.send_and_receive([message], timeout=20)
    assert reply.has_content(), reply.error


@pytest.mark.parametrize(
    "strategy",
    [
        {"quorum": 3},
        {"name": "FedBuff", "goal": 2, "quorum": 1},
        {"quorum": 1, "goal": 1, "late": "fold"},
    ],
)
def test_the_rounds_of_each_mode_verify_after_a_restart(
    loopback: Loopback, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    changed = {"task": {"name": TASK, "options": {"width": 2}}, "rounds": 6}
    a_job = plane_job(secure=False, strategy=strategy, **changed)
    names = [f"site-{number}" for number in range(3)]
    for at, name in enumerate(names):
        loopback.client(name, site_of(name, at))

    def serve(stop_after: int) -> None:
        def on_round(record: RoundRecord) -> None:
            if record.round == stop_after:
                raise InterruptedError

        workspace = Workspace(tmp_path / "run", a_job)
        trail = workspace.open_trail()
        trail.started(workspace.run_id, a_job.digest, last_round(workspace.checkpoints))
        server = loopback.server(trail=trail)
        server.await_sites(*names)
        grid = GrpcGrid(server.link, workspace.run_id)
        try:
            RoundLoop(a_job, grid, workspace, server.metrics, on_round).run()
        finally:
            server.link.stop()
            server.journal.close()

    with pytest.raises(InterruptedError):
        serve(3)
    # It dies without a further word: what was noted and not written is lost.
    serve(0)

    found, account = verify_trail(tmp_path / "run")
    assert found.rounds == 6
    history = read_history(tmp_path / "run")
    assert found.folded == sum(
        site["outcome"] == "result" for line in history for site in line["sites"].values()
    )
    folded = [reply for kept in account.kept.values() for reply in kept.folded]
    assert len(folded) == len(set(folded)) >= 6

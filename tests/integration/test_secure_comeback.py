"""A server that is killed in the middle of a secure round and comes back, over the link."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from hanse.flower import answer
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK
from hanse_client.app import make_client_app
from hanse_server.checkpoint import load_model
from hanse_server.grid import Replies
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.history import RoundRecord, read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import RoundLoop
from hanse_server.spending import Spending
from hanse_server.workspace import Workspace
from prometheus_client import CollectorRegistry

from tests.fleet import Fleet, plane_job, plane_site
from tests.loopback import Loopback, RunningServer, wait_until

NAMES = ("site-0", "site-1", "site-2", "site-3")
STAGES = (KEYS, SHARES, MessageType.TRAIN, SURVIVORS, UNMASK)
UNASKED = {"federated": False}


class KilledError(BaseException):
    """What ends the first server's loop."""


class Federation:
    """Four sites, and the servers of one run, one after the other."""

    def __init__(self, loopback: Loopback, folder: Path, job: Job) -> None:
        self.loopback, self.job, self.folder = loopback, job, folder
        self.workspace = Workspace(folder / "run", job)
        self.asked: Counter[tuple[str, str]] = Counter()
        self.clients = {name: self.start(name, at) for at, name in enumerate(NAMES)}

    def start(self, name: str, at: int) -> Any:
        """Start a site, or start it again with its outbox and an empty memory."""
        runtime = plane_site(name, at)
        app = make_client_app(lambda _: runtime)
        context = Context(self.workspace.run_id, node_id_of(name), {}, RecordDict(), {})

        def execute(message: Message) -> Message:
            self.asked[message.metadata.message_type, name] += 1
            return answer(lambda each: app(each, context), message)

        return self.loopback.client(name, execute)

    def loop(self, server: RunningServer) -> RoundLoop:
        """A server's rounds."""
        grid = GrpcGrid(server.link, self.workspace.run_id)
        metrics = ServerMetrics(CollectorRegistry())
        return RoundLoop(self.job, grid, self.workspace, metrics, lambda record: None)

    def die_at(self, stage: str) -> list[Any]:
        """A server that is gone once all sites have answered ``stage``, before it takes a reply."""
        server = self.loopback.server()
        server.await_sites(*NAMES)
        loop = self.loop(server)
        kept: list[Any] = []  # a process that is killed closes no iterator
        send = loop._grid.send_and_receive

        def dying(messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
            sent = list(messages)
            replies = send(sent, timeout=timeout)
            if sent and sent[0].metadata.message_type == stage:
                kept.append(replies)
                before = STAGES.index(stage) + 1
                wait_until(lambda: all(self.holds(name) >= before for name in NAMES))
                raise KilledError
            return replies

        loop._grid.send_and_receive = dying  # type: ignore[method-assign]
        with pytest.raises(KilledError):
            loop.run()
        server.link.stop()
        return kept

    def holds(self, name: str) -> int:
        return len(self.clients[name].outbox.instructions())

    def go_on(self, *names: str) -> None:
        """A new server carries the run to its end."""
        server = self.loopback.server()
        server.await_sites(*(names or NAMES))
        loop = self.loop(server)
        running = threading.Thread(target=loop.run, daemon=True)
        running.start()
        running.join(60)
        assert not running.is_alive()

    def model(self) -> dict[str, torch.Tensor]:
        return load_model(self.workspace.models / "last.safetensors")


def expected(folder: Path, count: int) -> dict[str, torch.Tensor]:
    """The model of a plain round of the first sites."""
    Fleet(count).loop(plane_job(secure=False), folder).run()
    return load_model(folder / "models" / "last.safetensors")


@pytest.mark.parametrize("stage", STAGES)
def test_it_goes_on_in_the_same_session(stage: str, loopback: Loopback, tmp_path: Path) -> None:
    federation = Federation(loopback, tmp_path, plane_job(secure=True, evaluation=UNASKED))
    kept = federation.die_at(stage)
    federation.go_on()
    assert set(federation.asked.values()) == {1}, "trained once, and unmasked once"
    assert {kind for kind, _ in federation.asked} == set(STAGES)
    for name, value in expected(tmp_path / "plain", 4).items():
        assert (federation.model()[name] - value).abs().max() < 1e-6
    assert kept


def test_where_it_cannot_go_on_it_begins_anew(loopback: Loopback, tmp_path: Path) -> None:
    """A site that had sent its update is gone for good: the others train again."""
    job = plane_job(
        secure=True,
        strategy={"quorum": 3, "patience": 1, "deadline": 2.0},
        secure_aggregation={"enabled": True, "stage_deadline": 2.0},
        evaluation=UNASKED,
    )
    federation = Federation(loopback, tmp_path, job)
    kept = federation.die_at(SURVIVORS)
    federation.clients["site-3"].stop()
    federation.go_on(*NAMES[:3])
    trained = {n: c for (kind, n), c in federation.asked.items() if kind == MessageType.TRAIN}
    assert trained == {"site-0": 2, "site-1": 2, "site-2": 2, "site-3": 1}
    for name, value in expected(tmp_path / "plain", 3).items():
        assert (federation.model()[name] - value).abs().max() < 1e-6
    (line,) = read_history(federation.workspace.folder)
    assert line["outcome"] == "completed"
    counted = Spending(job, [RoundRecord.from_line(line)]).costs(tight=False)
    assert {name: cost.counted for name, cost in counted.items()} == trained
    assert kept

"""A site's client without a network, whose records and whose link tell what really happened."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import ClassVar

import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from hanse.flower import ARRAYS, CONFIG, JOB, ROUND, Envelope, open_envelope, to_record
from hanse.job import Job
from hanse.records import Data, read_records
from hanse.task import Examples, NoOptions
from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.books import audit_path, ledger_path
from hanse_client.ledger import Ledger
from hanse_client.link.worker import Worker
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from hanse_client.runtime import SiteRuntime
from hanse_client.site import AllowedTask, Budget, Site
from prometheus_client import CollectorRegistry
from torch import Tensor

from tests.harbour import Line, job, site

FIRST, SECOND = "first", "second"
TASK = f"{__name__}:Watched"


class WatchedExamples(Examples):
    """Records that note, in a file, for whom some of them were drawn."""

    asked: ClassVar[str]

    def take(self, indices: Tensor) -> Examples:
        witness(f"drew {self.asked} {os.getpid()}")
        return super().take(indices)


class Watched(Line):
    """The task of the site that is killed."""

    def read(self, source: Path) -> Examples:
        examples = super().read(source)
        return WatchedExamples(examples.inputs, examples.targets)


def witness(what: str) -> None:
    """Note something where no kill -9 undoes it."""
    with Path("witness").open("a") as file:
        file.write(what + "\n")


def witnessed() -> list[str]:
    return Path("witness").read_text().splitlines() if Path("witness").exists() else []


def the_job() -> Job:
    return job(task={"name": TASK})


def the_site() -> Site:
    """The site of the current folder; its data is one file."""
    here = Path.cwd()
    (here / "train.txt").write_text("the same for ever\n")
    made = site(here / "state", tasks=(AllowedTask(name=TASK),))
    settings = {"data": Data(train=here / "train.txt"), "budget": Budget(epsilon=100.0)}
    return made.model_copy(update=settings)


class Client:
    """What ``hanse client run`` holds open, without a network."""

    def __init__(self, site: Site) -> None:
        self._ledger = Ledger(ledger_path(site))
        self._outbox = Outbox(site.state / "outbox.sqlite")
        runtime = SiteRuntime(
            site,
            read=lambda task: read_records(task, site.data),
            ledger=self._ledger,
            audit=AuditTrail(audit_path(site)),
            metrics=ClientMetrics(CollectorRegistry()),
        )
        self._app, self._failed = make_client_app(lambda _: runtime), True
        self._worker = Worker(self._execute, self._outbox, self._done)
        self._answered = threading.Event()

    def ask(self, name: str) -> None:
        """Have an instruction answered: from the outbox, or by training."""
        if name in self._outbox.instructions():
            self._leave(name)
            return
        self._answered.clear()
        WatchedExamples.asked = name
        self._worker.submit(_instruction(name))
        if not self._answered.wait(30) or self._failed:
            raise RuntimeError(f"no result of {name}")

    def close(self) -> None:
        self._worker.stop(10)
        self._outbox.close()
        self._ledger.close()

    def _execute(self, asked: Message) -> Message:
        self._failed = True
        reply = self._app(asked, Context(1, 2, {}, RecordDict(), {}))
        self._failed = reply.has_error()
        return reply

    def _done(self, asked: str, header: object, encoded: object, kept: bool) -> None:
        if not kept:
            raise RuntimeError("the outbox is full")
        self._leave(asked)
        self._answered.set()

    def _leave(self, name: str) -> None:
        """From here on the link sends the reply."""
        digest, offset = hashlib.sha256(), 0
        while piece := self._outbox.piece(name, offset):
            digest.update(piece)
            offset += len(piece)
        witness(f"left {name} {digest.hexdigest()}")


def _instruction(name: str) -> Message:
    torch.manual_seed(0)
    model = to_record(Line(NoOptions()).model().state_dict())
    config = ConfigRecord({JOB: the_job().instruction, ROUND: 1 if name == FIRST else 2})
    envelope = Envelope(
        message_id=name, run_id=1, src_node_id=1, dst_node_id=2, message_type=MessageType.TRAIN
    )
    return open_envelope(envelope, RecordDict({ARRAYS: model, CONFIG: config}))


def serve(*names: str) -> None:
    """A client's life: it starts, answers some instructions, and ends."""
    client = Client(the_site())
    for name in names:
        client.ask(name)
    client.close()

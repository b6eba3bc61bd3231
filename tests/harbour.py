"""A site to send instructions to, for tests of its gates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from hanse.flower import ARRAYS, CONFIG, JOB, ROUND, Envelope, open_envelope, to_record
from hanse.job import Job
from hanse.records import Data, Records
from hanse.task import Examples, NoOptions, RecordMetric, Task
from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.ledger import Ledger
from hanse_client.metrics import ClientMetrics
from hanse_client.runtime import SiteRuntime
from hanse_client.site import AllowedTask, Budget, Policy, Site, Tls
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

TASK = f"{__name__}:Line"
RECORDS = 40


class Line(Task[NoOptions]):
    """One number in, one number out."""

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def read(self, source: Path) -> Examples:
        numbers = torch.linspace(-1, 1, RECORDS).unsqueeze(1)
        return Examples((numbers,), 2 * numbers)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().squeeze(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"mae": float((outputs - targets).abs().mean()), "worst": float(outputs.max())}

    def record_metrics(self) -> dict[str, RecordMetric]:
        return {"mae": RecordMetric(values=lambda o, t: (o - t).abs().squeeze(1), bound=10.0)}


def job(**changes: Any) -> Job:
    settings: dict[str, Any] = {
        "name": "line",
        "rounds": 5,
        "task": {"name": TASK},
        "training": {"steps": 2, "batch_size": 20},
        "privacy": {"noise_multiplier": 2.0},
    }
    settings |= changes
    if settings["privacy"].get("mechanism") != "none":
        settings["privacy"] = {"sampling_rate": 0.5, **settings["privacy"]}
    return Job.model_validate(settings)


def site(folder: Path, **policy: Any) -> Site:
    allowed = {"tasks": (AllowedTask(name=TASK),)}
    return Site(
        name="harbour",
        coordinator="localhost:1",
        state=folder,
        tls=Tls(ca=folder, certificate=folder, key=folder),
        data=Data(train=folder),
        budget=Budget(epsilon=3.0),
        policy=Policy(**(allowed | policy)),
    )


class Harbour:
    """A site to send instructions to."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.metrics = ClientMetrics(CollectorRegistry())
        self.audit = folder / "audit.jsonl"
        self.ledger = Ledger(folder / "ledger.sqlite")

        def read(task: Any) -> Records:
            everything = task.read(folder)
            return Records(everything, everything.take(torch.arange(10)), "f" * 64)

        self.runtime = SiteRuntime(
            site,
            read=read,
            ledger=self.ledger,
            audit=AuditTrail(self.audit),
            metrics=self.metrics,
        )
        self.app: ClientApp = make_client_app(lambda context: self.runtime)
        self._context = Context(1, 2, {}, RecordDict(), {})

    def send(
        self,
        job: Job,
        *,
        number: int = 1,
        kind: str = MessageType.TRAIN,
        name: str = "a",
        more: dict[str, Any] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Message:
        model = to_record(weights or Line(NoOptions()).model().state_dict())
        config = ConfigRecord({JOB: job.instruction, ROUND: number, **(more or {})})
        envelope = Envelope(
            message_id=name, run_id=1, src_node_id=1, dst_node_id=2, message_type=kind
        )
        content = RecordDict({ARRAYS: model, CONFIG: config})
        return self.app(open_envelope(envelope, content), self._context)

    def spent(self) -> float:
        return self.ledger.statement("f" * 64, self.runtime.site.budget).spent

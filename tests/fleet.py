"""A fleet of small sites in this process that a test can lose at any stage of a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from hanse.config import Settings
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.records import Data, Records
from hanse.task import Examples, Task
from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.ledger import Ledger
from hanse_client.metrics import ClientMetrics
from hanse_client.runtime import SiteRuntime
from hanse_client.secagg import masking_of, simulated
from hanse_client.site import AllowedTask, Budget, Policy, Site, Tls
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import RoundLoop
from hanse_server.simulation.grid import LocalGrid
from hanse_server.simulation.inline import InlineEngine
from hanse_server.workspace import Workspace
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

TASK = f"{__name__}:Plane"


class Width(Settings):
    """``[task.options]``."""

    width: int = 150


class Plane(Task[Width]):
    """Many numbers in, many out: some 22,000 weights, so that statistics of an update tell."""

    Options = Width

    def model(self) -> nn.Module:
        return nn.Linear(self.options.width, self.options.width)

    def read(self, source: Path) -> Examples:
        randomness = torch.Generator().manual_seed(int(source.name))
        numbers = torch.randn(2, 20, self.options.width, generator=randomness)
        return Examples((numbers[0],), numbers[1])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"mae": float((outputs - targets).abs().mean())}


def plane_job(*, secure: bool, **changes: Any) -> Job:
    """One round without privacy, so that its model is a function of the sites alone."""
    settings: dict[str, Any] = {
        "name": "plane",
        "rounds": 1,
        "task": {"name": TASK},
        "training": {"steps": 2, "batch_size": 10, "optimizer": {"lr": 1.0}},
        "privacy": {"mechanism": "none"},
        "strategy": {"quorum": 3, "patience": 1},
        "secure_aggregation": {"enabled": secure},
    }
    return Job.model_validate(settings | changes)


def plane_site(name: str, at: int, **policy: Any) -> SiteRuntime:
    """A site whose records and weight follow from its number."""
    source = Path(str(at))
    site = Site(
        name=name,
        coordinator="localhost:1",
        tls=Tls(ca=source, certificate=source, key=source),
        data=Data(train=source),
        budget=Budget(epsilon=3.0),
        policy=Policy(
            **{
                "tasks": (AllowedTask(name=TASK),),
                "allow_training_without_privacy": True,
                "release_exact": ("*",),
                "count": at + 1.0,
                **policy,
            }
        ),
    )

    def read(task: Any) -> Records:
        examples = task.read(source)
        return Records(examples, examples, f"{at:064x}")

    return SiteRuntime(
        site,
        read=read,
        ledger=Ledger(None),
        audit=AuditTrail(None),
        metrics=ClientMetrics(CollectorRegistry()),
        masking=masking_of(site, simulated(name)),
    )


class LossyEngine(InlineEngine):
    """Answers all but what is to be lost, and keeps what was sent and answered.

    Attributes:
        lose: message types and sites whose messages get lost.
    """

    def __init__(self, app: ClientApp, names: Sequence[str]) -> None:
        super().__init__(app, {node_id_of(name): name for name in names})
        self.lose: set[tuple[str, str]] = set()
        self.replies: list[tuple[str, str, Message]] = []

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Yield the replies of those who are not lost."""
        kept = [m for m in messages if (m.metadata.message_type, self.name_of(m)) not in self.lose]
        for message, reply in zip(kept, super().execute(kept), strict=True):
            self.replies.append((message.metadata.message_type, self.name_of(message), reply))
            yield reply

    def of(self, kind: str) -> dict[str, Message]:
        """The replies to messages of one type, by site."""
        return {name: reply for each, name, reply in self.replies if each == kind}

    def name_of(self, message: Message) -> str:
        """The site that a message is for."""
        return self._sites[message.metadata.dst_node_id]


class Fleet:
    """The sites ``site-0``, ``site-1``, ...; site k weighs k + 1."""

    def __init__(self, count: int, **policy: Any) -> None:
        self.names = [f"site-{number}" for number in range(count)]
        self.sites = {name: plane_site(name, at, **policy) for at, name in enumerate(self.names)}

        def resolve(context: Context) -> SiteRuntime:
            return self.sites[str(context.node_config["site"])]

        self.engine = LossyEngine(make_client_app(resolve), self.names)

    def loop(self, job: Job, folder: Path) -> RoundLoop:
        """The rounds of a job on these sites."""
        workspace = Workspace(folder, job)
        grid = LocalGrid(workspace.run_id, self.names, self.engine)
        metrics = ServerMetrics(CollectorRegistry())
        return RoundLoop(job, grid, workspace, metrics, lambda record: None)

"""The sites of Hanse: real clients that leave out nothing but the training."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Message, MetricRecord, RecordDict
from hanse.flower import ARRAYS, METRICS, WEIGHT
from hanse.records import Data
from hanse.renewal import IdentityFiles
from hanse_client.link import Coordinator, LinkClient
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from hanse_client.serve import serve
from hanse_client.site import AllowedTask, Budget, Policy, Site, Tls
from hanse_client.training import Trainer, TrainingResult
from prometheus_client import CollectorRegistry
from torch import Tensor

from tests.benchmarks.federations.case import asked
from tests.benchmarks.federations.forks import fork_each
from tests.benchmarks.federations.layers import Layers
from tests.benchmarks.federations.provisioned import Provisioned


def echo(federation: Provisioned, name: str) -> None:
    """Send back what comes, over the client's link, from its outbox."""
    with closing(Outbox(federation.folder / name / "outbox.sqlite")) as outbox:
        LinkClient(
            coordinator=Coordinator(
                address=federation.address, identity=IdentityFiles(*federation.site_files(name))
            ),
            execute=sent_back,
            outbox=outbox,
            metrics=ClientMetrics(CollectorRegistry()),
        ).run()


def sent_back(message: Message) -> Message:
    """The model that came, as an update."""
    arrays = message.content.array_records[ARRAYS]
    content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: 1.0})})
    return Message(content, reply_to=message)


def gates(federation: Provisioned, name: str) -> None:
    """``hanse client run``, whose trainer gives the weights that came as its update."""
    ca, certificate, key = federation.site_files(name)
    folder = federation.folder / name
    records = folder / "records"
    records.write_text("the same for ever\n")
    state = folder / "state"
    state.mkdir()
    site = Site(
        name=name,
        coordinator=federation.address,
        device="cpu",
        state=state,
        metrics_port=0,
        tls=Tls(ca=ca, certificate=certificate, key=key),
        data=Data(train=records),
        budget=Budget(epsilon=100.0),
        policy=Policy(tasks=(AllowedTask(name=f"{Layers.__module__}:{Layers.__name__}"),)),
    )
    with patch.object(Trainer, "train", _untrained):
        serve(site)


def _untrained(trainer: Trainer, weights: dict[str, Tensor], *_: Any) -> TrainingResult:
    return TrainingResult(
        update=weights,
        train_loss=None,
        clipped_fraction=None,
        noised={},
        update_norm=math.sqrt(sum(float(each.square().sum()) for each in weights.values())),
        steps=1,
        backend=None,
        seconds=0.0,
    )


def main() -> None:
    """Fork the sites: what they do, the federation's folder and port, and the case."""
    sites_do, folder, port, *arguments = sys.argv[1:]
    live = {"echo": echo, "gates": gates}[sites_do]
    federation = Provisioned(Path(folder), int(port))
    fork_each(asked(arguments).site_names, partial(live, federation))


if __name__ == "__main__":
    main()

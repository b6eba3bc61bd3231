"""A site that is killed at the N-th line of three rounds, of whose updates it leaves much out.

Without privacy a round is a function of what was asked and of what was left out before: whatever
line a client dies at, the next one must answer with the bytes of a client that was never disturbed.
Run as a module, it prints as JSON what it found::

    python -m tests.faults.leaving_out --every 50 --offset 7
    python -m tests.faults.leaving_out --plant
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from hanse.encodings import ENCODING, KEPT
from hanse.flower import ARRAYS, CONFIG, JOB, ROUND, Envelope, open_envelope, to_record
from hanse.records import Records
from hanse.task import Examples, NoOptions, Task
from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail
from hanse_client.ledger import Ledger
from hanse_client.leftovers import Leftovers, LeftoverStore
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from hanse_client.runtime import SiteRuntime
from hanse_client.site import AllowedTask
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

from tests.faults.killing import NEVER, folder, in_child, trace
from tests.harbour import job, site

NAMES = ("first", "second", "third")
TASK = f"{__name__}:Square"


class Square(Task[NoOptions]):
    """Twenty numbers in, twenty out."""

    def model(self) -> nn.Module:
        return nn.Linear(20, 20)

    def read(self, source: Path) -> Examples:
        numbers = torch.linspace(-1, 1, 400).reshape(20, 20)
        return Examples((numbers,), numbers.flip(0))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def serve() -> None:
    """A client's life: it starts, and answers what its outbox does not hold."""
    here = Path.cwd()
    allowed = {"tasks": (AllowedTask(name=TASK),), "allow_training_without_privacy": True}
    with Ledger(here / "ledger") as ledger, closing(Outbox(here / "outbox")) as outbox:
        runtime = SiteRuntime(
            site(here, **allowed),
            read=_read,
            ledger=ledger,
            audit=AuditTrail(here / "audit"),
            metrics=ClientMetrics(CollectorRegistry()),
            leftovers=LeftoverStore(here / "leftovers"),
        )
        app = make_client_app(lambda _: runtime)
        for number, name in enumerate(NAMES, start=1):
            if name in outbox.instructions():
                continue
            reply = app(_instruction(name, number), Context(1, 2, {}, RecordDict(), {}))
            arrays = reply.content.array_records[ARRAYS]
            body = b"".join(array.data for array in arrays.values())
            outbox.put(name, b"", [body])


def _read(task: Any) -> Records:
    return Records(task.read(Path.cwd()), None, "f" * 64)


def _instruction(name: str, number: int) -> Message:
    torch.manual_seed(0)
    asked = job(task={"name": TASK}, privacy={"mechanism": "none"})
    config = ConfigRecord({JOB: asked.instruction, ROUND: number, ENCODING: "topk", KEPT: 0.05})
    weights = to_record(Square(NoOptions()).model().state_dict())
    envelope = Envelope(
        message_id=name, run_id=1, src_node_id=1, dst_node_id=2, message_type=MessageType.TRAIN
    )
    return open_envelope(envelope, RecordDict({ARRAYS: weights, CONFIG: config}))


def answers() -> dict[str, bytes]:
    """What lies in the outbox of the current folder."""
    with closing(Outbox(Path("outbox"))) as outbox:
        return {name: outbox.piece(name, 0) for name in NAMES}


def life(fatal: int) -> None:
    """Serve until the line, or to the end."""

    def act() -> None:
        count = trace(fatal)
        serve()
        Path("count").write_text(str(count()))

    in_child(act)


def undisturbed() -> tuple[int, dict[str, bytes]]:
    """How many lines such a life has, and what it answers."""
    with folder():
        life(NEVER)
        return int(Path("count").read_text()), answers()


def sweep(every: int, offset: int, *, first: bool = False) -> dict[str, Any]:
    """Kill a client at one line in ``every``, and the next one anywhere.

    Args:
        first: end with the first failure.
    """
    total, expected = undisturbed()
    anywhere = random.Random(offset)
    found: dict[str, Any] = {"lines": total, "points": 0, "failures": []}
    for fatal in range(1 + offset % every, total + 1, every):
        found["points"] += 1
        again = anywhere.randint(1, total)
        with folder():
            for each in (fatal, again, NEVER):
                life(each)
            wrong = [name for name, body in answers().items() if body != expected[name]]
        if wrong:
            found["failures"].append(f"killed at {fatal}, then {again}: {', '.join(wrong)}")
            if first:
                break
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--every", type=int, default=1)
    arguments.add_argument("--offset", type=int, default=0)
    arguments.add_argument("--plant", action="store_true")
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    torch.optim.SGD(nn.Linear(1, 1).parameters())  # torch imports more, once
    if asked.plant:  # what an instruction left out is added to itself when it comes again
        with patch.object(Leftovers, "at", lambda self, owner, instruction: self.after):
            found = sweep(asked.every, asked.offset, first=True)
    else:
        found = sweep(asked.every, asked.offset)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

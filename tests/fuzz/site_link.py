"""Frames from the server: a site's stream, and its gates as far as the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import (
    ConfigRecord,
    Message,
    RecordDict,
)
from flwr.app import Error as FlowerError
from hanse.errors import HanseError
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    ROUND,
    open_envelope,
    to_record,
)
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import encode, make_header
from hanse_client.link.coordinator import RefusedError
from hanse_client.link.desk import Desk
from hanse_client.link.stream import Stream
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from hanse_client.site import AllowedTask
from prometheus_client import CollectorRegistry

from tests.fuzz.frames import (
    ANSWER,
    LIMITS,
    TO_HARBOUR,
    change_stream,
    contents,
    parsed,
    stream_of,
)
from tests.fuzz.mutation import pack
from tests.fuzz.target import Target
from tests.harbour import Harbour, job, site


class _Worker:
    """Takes instructions as far as the site's gates; none is trained on."""

    def __init__(self, harbour: Harbour) -> None:
        self._runtime = harbour.runtime
        self.refusals: list[HanseError] = []

    def submit(self, instruction: Message) -> None:
        try:
            if instruction.has_error():
                return
            if instruction.metadata.message_type in ("train", "evaluate"):
                self._runtime.accept(instruction)
            else:
                self._runtime.masked(instruction)
        except HanseError as refusal:
            self.refusals.append(refusal)

    def refuse(self, instruction: Message, error: HanseError) -> None:
        self.refusals.append(error)

    def withdraw(self, instructions: Any) -> list[str]:
        return list(instructions)


class AskedSite:
    """A site that is asked to train under a job of any text, of the tasks given."""

    def __init__(self, folder: Path, *tasks: str) -> None:
        allowed = tuple(AllowedTask(name=name) for name in tasks)
        at = site(folder, tasks=allowed, max_model_mb=10.0, allow_training_without_privacy=True)
        self._harbour = Harbour(folder, at)
        self._model = to_record({"weight": torch.zeros(1, 1), "bias": torch.zeros(1)})

    def ask(self, text: bytes) -> None:
        """Let the instruction through all gates that come before the ledger."""
        config = ConfigRecord({JOB: text.decode("utf-8", "replace"), ROUND: 1})
        content = RecordDict({ARRAYS: self._model, CONFIG: config})
        self._harbour.runtime.accept(open_envelope(TO_HARBOUR, content))

    def close(self) -> None:
        """Close the site's ledger."""
        self._harbour.ledger.close()


def to_site(folder: Path) -> Target:
    """Frames that the server sends: a site's stream, and its gates as far as the ledger."""
    outbox = Outbox(folder / "outbox.sqlite")
    header = make_header(encode(FlowerError(2)), ANSWER)
    outbox.put("held", header.SerializeToString(), [b"abc", b"def"])
    metrics = ClientMetrics(CollectorRegistry())
    harbour = Harbour(folder, site(folder))
    loop = asyncio.new_event_loop()

    async def feed(frames: Sequence[Any]) -> list[HanseError]:
        worker: Any = _Worker(harbour)
        desk = Desk(outbox, worker, metrics, LIMITS, {"held"}, {"busy"})
        stream = Stream(desk)
        for frame in frames:
            try:
                await stream.on_frame(frame)
            except RefusedError:  # the server said goodbye
                return []
            except HanseError as refusal:  # ends the stream
                return [refusal]
        stream.leave()
        async for _ in stream.duplex.outgoing:
            pass
        await stream.duplex.outgoing.discard()
        desk.hello()
        return list(worker.refusals)

    def run(data: bytes) -> None:
        _, frames = parsed(data, pb.ServerFrame)
        frames = [
            each for each in frames if each.WhichOneof("kind") != "settle"
        ]  # the outbox is shared
        for refusal in loop.run_until_complete(feed(frames)):
            raise refusal

    config = ConfigRecord({JOB: job().instruction, ROUND: 1, "proximal-mu": 0.5})
    line = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    asked = RecordDict({ARRAYS: to_record(line), CONFIG: config})
    others = [
        pb.ServerFrame(ask=pb.Ask(message_id="held")),
        pb.ServerFrame(ack=pb.Ack(message_id="held", received=2)),
        pb.ServerFrame(goodbye=pb.Goodbye(reason="wire", message="no", retry=True)),
        pb.ServerFrame(heartbeat=pb.Heartbeat()),
    ]
    seeds = [
        pack([b"\1", *stream_of(asked, replace(TO_HARBOUR, message_type=kind), pb.ServerFrame)])
        for kind in ("train", "evaluate", "query.masking_keys", "query.unmask")
    ]
    seeds += [
        pack([b"\1", *stream_of(each, TO_HARBOUR, pb.ServerFrame), other.SerializeToString()])
        for each, other in zip(contents(), others, strict=False)
    ]
    seeds += [
        pack([b"\1", *stream_of(each, TO_HARBOUR, pb.ServerFrame, inline=True)])
        for each in (asked, *contents())
    ]

    def close() -> None:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        outbox.close()
        harbour.ledger.close()

    return Target(run=run, seeds=seeds, mutate=change_stream(pb.ServerFrame), close=close)

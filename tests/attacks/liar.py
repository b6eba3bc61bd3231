"""A registered site that writes its frames by hand, and the round that it is a part of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import torch
from flwr.app import Array, Error, Message, RecordDict
from hanse.flower import ARRAYS, METRICS, SERVER_NODE_ID, WEIGHT, Envelope, to_metrics, to_record
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.task import Examples, NoOptions, Task
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import chunks, encode, make_header, unpack
from hanse_client.link import Coordinator
from hanse_client.link.coordinator import make_hello
from hanse_server.bounds import reply_limits
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.rounds import RoundLoop
from hanse_server.workspace import Workspace
from torch import Tensor, nn

from tests.loopback import Loopback, RunningServer

LIAR = "liar"
HONEST = ("east", "west")
WIDTH = 8


class Line(Task[NoOptions]):
    """Some numbers in, one out."""

    def model(self) -> nn.Module:
        return nn.Linear(WIDTH, 1)

    def read(self, source: Path) -> Examples:
        raise AssertionError("the server reads no records")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def update(fill: float = 1.0) -> dict[str, Tensor]:
    """An update of :class:`Line`."""
    return {"weight": torch.full((1, WIDTH), fill), "bias": torch.full((1,), fill)}


def answer(
    tensors: Mapping[str, Tensor] | None = None, metrics: Mapping[str, float] = MappingProxyType({})
) -> RecordDict:
    """What an honest site answers, but for what is told."""
    arrays = to_record(update() if tensors is None else tensors)
    return RecordDict({ARRAYS: arrays, METRICS: to_metrics({WEIGHT: 1.0, **metrics})})


def with_array(array: Array) -> RecordDict:
    """An honest answer but for one array."""
    content = answer()
    content.array_records[ARRAYS]["weight"] = array
    return content


def honest(message: Message) -> Message:
    """What the other sites do."""
    return Message(answer(), reply_to=message)


def job(deadline: float = 120.0) -> Job:
    """One round of three sites, of which two do."""
    return Job.model_validate(
        {
            "name": "line",
            "rounds": 1,
            "task": {"name": f"{__name__}:Line"},
            "training": {"steps": 1},
            "privacy": {"mechanism": "none"},
            "strategy": {"quorum": 2, "available": 3, "deadline": deadline},
            "checks": {
                "max_update_norm": 100.0,
                "beyond": "refuse",
                "max_weight": 10.0,
                "metrics": {"accuracy": (0.0, 1.0)},
            },
            "encoding": {"name": "topk", "kept": 0.5},
            "evaluation": {"federated": False},
        }
    )


class Liar:
    """An open stream, with frames written by hand, and read whatever is being written."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._heard: asyncio.Queue[Any] = asyncio.Queue()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(grpc.aio.AioRpcError):
            while (frame := await self.stream.read()) is not grpc.aio.EOF:
                self._heard.put_nowait(frame)
        self._heard.put_nowait(pb.ServerFrame(goodbye=pb.Goodbye(reason="no word")))

    async def say(self, **frame: Any) -> None:
        """Write a frame."""
        await self.stream.write(pb.SiteFrame(**frame))

    async def hear(self, *kinds: str) -> Any:
        """The next frame of one of these kinds."""
        async with asyncio.timeout(60):
            while (frame := await self._heard.get()).WhichOneof("kind") not in kinds:
                pass
        return getattr(frame, frame.WhichOneof("kind"))

    async def asked(self) -> Envelope:
        """The envelope of the instruction that comes next."""
        return unpack((await self.hear("header")).envelope)

    async def farewell(self) -> str:
        """The label with which the server ends the stream."""
        return str((await self.hear("goodbye")).reason)

    async def announce(self, asked: Envelope, content: RecordDict | Error, **false: Any) -> None:
        """Say the header of an answer, under an envelope that is ``false`` in these."""
        await self.say(header=header(asked, content, **false))

    async def reply(
        self,
        asked: Envelope,
        content: RecordDict | Error,
        damage: Callable[[pb.Header], None] = lambda header: None,
        **false: Any,
    ) -> None:
        """Answer, as far as the server lets."""
        made = header(asked, content, **false)
        damage(made)
        await self.say(header=made)
        if made.body_size:
            await self.hear("ack")
            for offset, data in chunks(encode(content)):
                chunk = pb.Chunk(message_id=asked.message_id, offset=offset, data=data)
                await self.say(chunk=chunk)


def header(asked: Envelope, content: RecordDict | Error, **false: Any) -> pb.Header:
    """The header of an answer."""
    own: dict[str, Any] = {
        "message_id": "a" * 32,
        "run_id": asked.run_id,
        "src_node_id": asked.dst_node_id,
        "dst_node_id": SERVER_NODE_ID,
        "message_type": asked.message_type,
        "group_id": asked.group_id,
        "reply_to": asked.message_id,
    }
    return make_header(encode(content), Envelope(**(own | false)))


def envelope_of(instruction: str) -> Envelope:
    """What an instruction to train comes under, known by its id alone."""
    return Envelope(
        message_id=instruction,
        run_id=1,
        src_node_id=SERVER_NODE_ID,
        dst_node_id=node_id_of(LIAR),
        message_type="train",
    )


@asynccontextmanager
async def knock(loopback: Loopback, name: str = LIAR) -> AsyncIterator[Liar]:
    """A stream on which nothing was said."""
    identity = loopback.identity(loopback.issue(name))
    coordinator = Coordinator(address=f"127.0.0.1:{loopback.port}", identity=identity)
    async with coordinator.stream() as stream:
        liar = Liar(stream)
        yield liar
        liar.reading.cancel()


@asynccontextmanager
async def enter(loopback: Loopback, name: str = LIAR, **hello: Any) -> AsyncIterator[Liar]:
    """A stream of a site that was let in."""
    async with knock(loopback, name) as liar:
        await liar.say(hello=make_hello(**hello))
        await liar.hear("welcome")
        yield liar


def round_of(server: RunningServer, folder: Path, job: Job) -> RoundLoop:
    """The one round of ``job``, over the link, as `hanse server run` has it."""
    workspace = Workspace(folder, job)
    grid = GrpcGrid(server.link, workspace.run_id, bounds=reply_limits)
    return RoundLoop(job, grid, workspace, server.metrics, lambda record: None)

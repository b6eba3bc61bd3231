"""Records what goes over a real link, as test vectors of the protocol's version.

Each file of ``tests/contract/vectors/<version>`` is one stream of a site, from its first frame to
its last: the bytes of each frame, and what they mean. ``descriptor.json`` is the contract itself.
Vectors of a released version are never made anew; for one that is not yet released::

    python -m tests.contract.record_vectors
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from google.protobuf import descriptor_pb2
from google.protobuf.json_format import MessageToDict, Parse
from hanse.errors import PolicyError
from hanse.flower import SERVER_NODE_ID, Envelope, error_reply, to_record, to_tensors
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.frames import Chunk, Opening, header_of, serialize
from hanse.wire.limits import Limits
from hanse.wire.message import encode, make_header
from hanse.wire.protocol import MAJOR, MINOR
from hanse_client.app import make_client_app
from hanse_client.link import Coordinator
from hanse_client.link.coordinator import make_hello, shake_hands
from hanse_server.rounds import RoundLoop
from hanse_server.workspace import Workspace

from tests.contract.dialect import descriptor_of_today, today
from tests.fleet import TASK, plane_job, plane_site
from tests.loopback import Execute, Loopback, RunningServer, wait_until

VECTORS = Path(__file__).parent / "vectors"
CHUNK_BYTES = 512
"""Small enough for most messages here to need several; the smallest have their body inline."""

Frames = list[tuple[str, bytes]]
"""The frames of one stream in their order, each with its name in the contract."""


class Tap:
    """A site's stream, with an ear on it."""

    def __init__(self, call: Any, heard: Frames) -> None:
        self._call = call
        self._heard = heard

    async def write(self, frame: pb.SiteFrame | Chunk | Opening) -> None:
        self._heard.append(("SiteFrame", serialize(frame)))
        await self._call.write(frame)

    async def read(self) -> Any:
        frame = await self._call.read()
        if isinstance(frame, pb.ServerFrame | Chunk | Opening):
            self._heard.append(("ServerFrame", serialize(frame)))
        return frame

    async def done_writing(self) -> None:
        await self._call.done_writing()


@contextmanager
def tapped() -> Iterator[dict[str, list[Frames]]]:
    """Hear the streams of all sites, each site's by its name, in chunks of a few bytes."""
    heard: dict[str, list[Frames]] = {}
    stream = Coordinator.stream

    @asynccontextmanager
    async def listened(self: Coordinator) -> AsyncIterator[Tap]:
        frames: Frames = []
        heard.setdefault(self.identity.current().name, []).append(frames)
        async with stream(self) as call:
            yield Tap(call, frames)

    with (
        patch.object(Coordinator, "stream", listened),
        patch("hanse_server.link.window.SendWindow.largest", CHUNK_BYTES),
        patch("hanse_client.bodies.CHUNK_BYTES", CHUNK_BYTES),
        patch("hanse_client.outbox.SMALL_BYTES", CHUNK_BYTES),
    ):
        yield heard


def descriptor_of(version: str) -> descriptor_pb2.FileDescriptorProto:
    """The contract of a version as it was recorded."""
    text = (VECTORS / version / "descriptor.json").read_text()
    return Parse(text, descriptor_pb2.FileDescriptorProto())


def record(folder: Path) -> dict[str, Frames]:
    """One stream of each kind, by the name of its vector."""
    found: dict[str, Frames] = {}
    for name, play in PLAYS.items():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        (folder / name).mkdir()
        with Loopback(folder / name, port) as loopback, tapped() as heard:
            play(loopback)
        found[name] = heard["site-0"][-1]
    return found


# --- the streams ----------------------------------------------------------------------------------


def everything() -> RecordDict:
    """Each kind of record, value and tensor that the wire carries."""
    numbers = torch.tensor([[1.0, -2.5, 0.0], [3.0, 0.125, 7.0]])
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    whole = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    tensors = {str(kind).partition(".")[2]: numbers.to(kind) for kind in kinds}
    tensors |= {str(kind).partition(".")[2]: numbers.abs().to(kind) for kind in whole}
    tensors |= {"scalar": torch.tensor(0.5), "empty": torch.empty(0, 3)}
    config = {
        "text": "some",
        "flag": True,
        "integer": -3,
        "real": 0.1,
        "data": b"\x00\xff",
        "texts": ["a", "b"],
        "flags": [True, False],
        "integers": [1, -(2**40)],
        "reals": [0.5, -1e-9],
        "datas": [b"", b"\x01"],
    }
    return RecordDict(
        {
            "arrays": to_record(tensors),
            "metrics": MetricRecord({"loss": 0.25, "counts": [1, 2]}),
            "config": ConfigRecord(config),  # type: ignore[arg-type]
        }
    )


def echo(message: Message) -> Message:
    """The reply of a site that sends back what it got."""
    return Message(message.content, reply_to=message)


def exchange(server: RunningServer, *kinds: str) -> list[Message]:
    """The replies of the first site to a message of each type."""
    grid = server.grid()
    messages = [
        Message(everything(), node_id_of("site-0"), kind, group_id="1", ttl=3600.0)
        for kind in kinds
    ]
    replies = list(grid.send_and_receive(messages, timeout=20))
    grid.settle()
    return replies


def plain(loopback: Loopback) -> None:
    """Instructions with a result, a refusal and a failure; then the server stops."""

    def execute(message: Message) -> Message:
        kind = message.metadata.message_type
        if kind == "evaluate":
            return error_reply(PolicyError("not this task"), message)
        if kind == "query":
            raise ValueError("secret")
        return echo(message)

    server = loopback.server(job="vectors")
    client = loopback.client("site-0", execute)
    server.await_sites("site-0")
    exchange(server, "train", "evaluate", "query")
    wait_until(lambda: not client.outbox.instructions())
    server.link.stop()


def secure(loopback: Loopback) -> None:
    """A round of secure aggregation with three sites, all of its stages."""
    job = vector_job()
    server = loopback.server(job=job.name)
    names = [f"site-{number}" for number in range(3)]
    for at, name in enumerate(names):
        loopback.client(name, site_of(name, at))
    server.await_sites(*names)
    workspace = Workspace(loopback.folder / "run", job)
    RoundLoop(job, server.grid(), workspace, server.metrics, lambda _: None).run()
    server.link.stop()


def vector_job() -> Job:
    """The job of the secure round; also what its text is held against."""
    task = {"name": TASK, "options": {"width": 2}}
    return plane_job(secure=True, task=task, training={"steps": 1, "batch_size": 10})


def site_of(name: str, at: int) -> Execute:
    """What a site of the fleet does with an instruction."""
    runtime = plane_site(name, at)
    app = make_client_app(lambda _: runtime)
    context = Context(1, node_id_of(name), {"site": name}, RecordDict(), {})
    return lambda message: app(message, context)


def comeback(loopback: Loopback) -> None:
    """A site, a version ahead, that was away while it sent a reply: it says what it has, the server
    asks for it, and how far it has come.
    """
    server = loopback.server()
    identity = loopback.identity(loopback.issue("site-0"))
    coordinator = Coordinator(address=f"127.0.0.1:{loopback.port}", identity=identity)
    grid = server.grid()
    names = ("train", "evaluate", "query")
    messages = [Message(everything(), node_id_of("site-0"), name) for name in names]
    held, busy, partial = grid.push_messages(messages)
    reply = Envelope(
        message_id="reply",
        run_id=grid.run_id,
        src_node_id=node_id_of("site-0"),
        dst_node_id=SERVER_NODE_ID,
        message_type=names[0],
        reply_to=held,
        created_at=1.0,
        ttl=3600.0,
    )
    encoded = encode(everything())

    async def read_until(stream: Any, kind: str) -> None:
        while (await stream.read()).WhichOneof("kind") != kind:
            pass

    async def converse(offset: int) -> None:
        """Announce the reply, and send one piece of it, from ``offset`` on."""
        async with coordinator.stream() as stream:
            progress = [pb.Progress(message_id=partial, received=CHUNK_BYTES)]
            told = {"held": [held], "busy": [busy], "partial": progress}
            hello = make_hello(capabilities=["vectors"], **told)
            hello.protocol.minor += 1  # a number that is 0 is not written
            await shake_hands(stream, hello)
            await read_until(stream, "ask")
            await stream.write(pb.SiteFrame(header=make_header(encoded, reply)))
            await read_until(stream, "ack")
            data = b"".join(encoded.body)[offset : offset + CHUNK_BYTES]
            await stream.write(Chunk(held, offset, (data,)))
            await asyncio.sleep(0.2)
            end = pb.Goodbye(reason="stopping", message="the site stops", retry=True)
            await stream.write(pb.SiteFrame(goodbye=end))
            await stream.done_writing()
            while isinstance(await stream.read(), pb.ServerFrame | Chunk):
                pass

    for number in range(2):
        asyncio.run(converse(number * CHUNK_BYTES))
        wait_until(lambda: not server.link.connected())


def refused(loopback: Loopback) -> None:
    """A site that is not registered."""
    loopback.server()
    loopback.client("site-0", echo, registered=False).await_end()


PLAYS: dict[str, Callable[[Loopback], None]] = {
    "plain": plain,
    "secure": secure,
    "comeback": comeback,
    "refused": refused,
}


# --- what they mean -------------------------------------------------------------------------------


def messages_of(frames: Frames) -> Iterator[tuple[Message, str]]:
    """The messages that a stream carried whole, by the code that is here, with their digests."""
    under_way: dict[tuple[str, str], Assembler] = {}
    for side, data in frames:
        frame = pb.SiteFrame.FromString(data)
        if side == "ServerFrame":
            frame = pb.ServerFrame.FromString(data)  # type: ignore[assignment]
        kind = frame.WhichOneof("kind")
        if kind == "header":
            header, body = header_of(frame)
            assembler = Assembler(header, Limits(), body=body)
            of_reply = side == "SiteFrame"
            name = assembler.envelope.reply_to if of_reply else assembler.envelope.message_id
            under_way[side, name] = assembler
        elif kind == "chunk":
            name, assembler = frame.chunk.message_id, under_way[side, frame.chunk.message_id]
            if assembler.received == frame.chunk.offset:  # else it goes on from an earlier stream
                assembler.add(frame.chunk.offset, frame.chunk.data)
        else:
            continue
        if assembler.complete:
            del under_way[side, name]
            yield assembler.message(), assembler.digest.hex()


def message_means(message: Message, digest: str) -> dict[str, Any]:
    """What a message says, as JSON: its metadata, and each number in it."""
    told = {
        "digest": digest,
        "message_id": message.metadata.message_id,
        "run_id": str(message.metadata.run_id),
        "from": str(message.metadata.src_node_id),
        "to": str(message.metadata.dst_node_id),
        "reply_to": message.metadata.reply_to_message_id,
        "group": message.metadata.group_id,
        "type": message.metadata.message_type,
        "created_at": message.metadata.created_at,
        "ttl": message.metadata.ttl,
    }
    if message.has_error():
        return told | {"error": [message.error.code, message.error.reason]}
    return told | {"content": {name: _values(each) for name, each in message.content.items()}}


def _values(record: ArrayRecord | MetricRecord | ConfigRecord) -> dict[str, Any]:
    if isinstance(record, ArrayRecord):
        return {
            name: [str(tensor.dtype), list(tensor.shape), tensor.tolist()]
            for name, tensor in to_tensors(record).items()
        }
    return {name: _plain(value) for name, value in record.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def as_vector(frames: Frames) -> dict[str, Any]:
    """A stream as it is kept."""
    dialect = today()
    return {
        "protocol": f"{MAJOR}.{MINOR}",
        "frames": [
            {
                "frame": side,
                "bytes": base64.b64encode(data).decode(),
                "means": dialect.means(side, data),
            }
            for side, data in frames
        ],
        "messages": [message_means(message, digest) for message, digest in messages_of(frames)],
    }


def main() -> None:
    """Record the vectors of the version that the code here speaks."""
    folder = VECTORS / f"{MAJOR}.{MINOR}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        vectors = {name: as_vector(each) for name, each in record(Path(temporary)).items()}
    vectors["descriptor"] = MessageToDict(descriptor_of_today(), preserving_proto_field_name=True)
    for name, vector in vectors.items():
        (folder / f"{name}.json").write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()

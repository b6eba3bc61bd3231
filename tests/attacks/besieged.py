"""A site with its real gates, over the real link to a server that sends whatever it likes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    ROUND,
    SERVER_NODE_ID,
    Envelope,
    to_record,
)
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.task import NoOptions
from hanse.wire import hanse_pb2 as pb
from hanse.wire.limits import MEGABYTE, Limits
from hanse.wire.message import encode
from hanse.wire.protocol import METHOD, SERVICE, this_protocol, versions
from hanse_client.audit import read_audit
from hanse_client.gates import refuse, tell_breach
from hanse_server.link import Instruction, Reply, Slots

from tests import harbour
from tests.harbour import Harbour, Line
from tests.loopback import RUN_ID, Loopback, RunningClient, RunningServer, wait_until

NAME = "harbour"


def config(job: Job, number: int = 1, **more: Any) -> ConfigRecord:
    """The configuration of an honest instruction."""
    return ConfigRecord({JOB: job.instruction, ROUND: number, **more})


def content(job: Job, number: int = 1, **more: Any) -> RecordDict:
    """The content of an honest instruction."""
    model = to_record(Line(NoOptions()).model().state_dict())
    return RecordDict({ARRAYS: model, CONFIG: config(job, number, **more)})


class Besieged:
    """A site behind its gates, in a thread of its own.

    Args:
        policy: of the site, where it differs from the harbour's.
    """

    def __init__(
        self,
        loopback: Loopback,
        *,
        limits: Limits | None = None,
        port: int | None = None,
        **policy: Any,
    ) -> None:
        self.site = Harbour(loopback.folder, harbour.site(loopback.folder, **policy))
        app, runtime = self.site.app, self.site.runtime

        def execute(message: Message) -> Message:
            context = Context(RUN_ID, node_id_of(NAME), {}, RecordDict(), {})
            return app(message, context)

        megabytes = runtime.site.policy.max_model_mb
        self.client: RunningClient = loopback.client(
            NAME,
            execute,
            limits=limits or Limits(max_body_bytes=round(megabytes * MEGABYTE)),
            port=port,
            refuse=partial(refuse, runtime),
            on_breach=partial(tell_breach, runtime),
        )

    @property
    def told(self) -> list[dict[str, Any]]:
        """The lines of the audit trail that tell of refusals."""
        lines = read_audit(self.site.audit)
        return [line for line in lines if line["event"] in ("refused", "stream_ended")]

    @property
    def trained(self) -> list[str]:
        """Ids of the instructions that the ledger has a charge of that counts."""
        entries = self.site.ledger.entries()
        return [e.instruction.message_id for e in entries if e.state != "taken back"]

    def refusals(self, label: str) -> float:
        """What the site's own metrics show."""
        # The link counts into one registry, the gates into another: in a real client it is one.
        name, labels = "hanse_client_refusals_total", {"reason": label}
        return self.site.metrics.registry.get_sample_value(name, labels) or 0.0


class Tyrant:
    """A server that pushes instructions as they are, past the grid."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    def send(
        self,
        asked: RecordDict,
        *,
        id: str = "a" * 32,  # noqa: A002  what it is
        kind: str = MessageType.TRAIN,
        seconds: float = 20.0,
        **false: Any,
    ) -> Message:
        """Send an instruction under an envelope that is ``false`` in these; the reply."""
        own: dict[str, Any] = {
            "message_id": id,
            "run_id": RUN_ID,
            "src_node_id": SERVER_NODE_ID,
            "dst_node_id": node_id_of(NAME),
            "message_type": kind,
            "created_at": time.time(),
            "ttl": 3600.0,
        }
        envelope = Envelope(**(own | false))
        replies: list[Reply] = []
        limits = self.server.link.limits
        instruction = Instruction(
            site=NAME, envelope=envelope, encoded=encode(asked), limits=limits
        )
        self.server.link.push([instruction], replies.append, Slots(8))
        wait_until(lambda: bool(replies), seconds)
        self.server.link.take(replies[0])
        return replies[0].message

    def settle(self) -> None:
        """Settle all."""
        self.server.link.settle(keep=())


Script = Callable[[Any], Awaitable[None]]


@contextmanager
def rogue(loopback: Loopback, script: Script) -> Iterator[None]:
    """A server on the loopback's port that lets anybody in, and writes frames by ``script``."""
    started, stop = threading.Event(), threading.Event()

    async def connect(_: Any, context: Any) -> None:
        await context.read()
        await script(context)
        while await context.read() is not grpc.aio.EOF:
            pass

    async def main() -> None:
        server = grpc.aio.server()
        link = grpc.stream_stream_rpc_method_handler(
            connect,
            request_deserializer=pb.SiteFrame.FromString,
            response_serializer=pb.ServerFrame.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {METHOD: link})
        server.add_generic_rpc_handlers((handler,))
        own = loopback.server_identity
        credentials = grpc.ssl_server_credentials(
            [(own.key, own.certificate)], root_certificates=own.ca, require_client_auth=True
        )
        server.add_secure_port(f"127.0.0.1:{loopback.port}", credentials)
        await server.start()
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.02)
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


def welcome(**told: Any) -> pb.ServerFrame:
    """The first frame of a server."""
    own: dict[str, Any] = {
        "protocol": this_protocol(),
        "versions": versions(),
        "heartbeat_seconds": 0.5,
    }
    return pb.ServerFrame(welcome=pb.Welcome(**(own | told)))


def edited(job: Job, **keys: Any) -> str:
    """A job's text with other values, past what a job may be."""
    text = json.loads(job.instruction)
    for path, value in keys.items():
        *tables, key = path.split("__")
        at = text
        for table in tables:
            at = at[table]
        at[key] = value
    return json.dumps(text)

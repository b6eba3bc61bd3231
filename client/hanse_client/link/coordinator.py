"""The coordinator: how it is reached, greeted, and why it cannot be."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from hanse.errors import CertificateError, HanseError, ProtocolError, UnreachableError
from hanse.plain import plain
from hanse.tls import IdentitySource, check_server_certificate
from hanse.wire import hanse_pb2 as pb
from hanse.wire.frames import deserializer, serialize
from hanse.wire.limits import Limits
from hanse.wire.protocol import (
    LONGEST_ID,
    METHOD,
    SERVICE,
    check_protocol,
    error_of,
    grpc_options,
    this_protocol,
    versions,
)

WELCOME_SECONDS = 20.0
_PROBE_SECONDS = 5.0


class RefusedError(Exception):
    """The coordinator has said goodbye.

    Args:
        retry: whether it asks to try again.
    """

    def __init__(self, error: HanseError, *, retry: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry = retry


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """What the coordinator says of itself.

    Attributes:
        versions: of its software.
        job: the name of the job that it runs.
    """

    versions: dict[str, str]
    job: str


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """Where the server is, and how this site speaks to it.

    Attributes:
        address: host:port.
        identity: asked anew for each stream, so that a renewed one is taken up.
    """

    address: str
    identity: IdentitySource
    limits: Limits = field(default_factory=Limits)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Any]:
        """gRPC's end of a fresh stream.

        Raises:
            CertificateExpiredError: if this site's certificate is over.
        """
        identity = self.identity.current()
        identity.check_date()
        credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
        options = grpc_options(self.limits)
        async with grpc.aio.secure_channel(self.address, credentials, options) as channel:
            connect = channel.stream_stream(
                f"/{SERVICE}/{METHOD}",
                request_serializer=serialize,
                response_deserializer=deserializer(pb.ServerFrame),
            )
            yield connect()

    async def explain(self, error: grpc.aio.AioRpcError) -> HanseError:
        """Why no stream came about, as far as it can be found out."""
        host, _, port = self.address.rpartition(":")
        try:
            pem = await asyncio.to_thread(
                ssl.get_server_certificate, (host, int(port)), timeout=_PROBE_SECONDS
            )
            check_server_certificate(pem.encode(), self.identity.current().ca, self.address)
        except OSError as silent:
            return UnreachableError(f"{self.address} does not answer: {silent}")
        except CertificateError as distrusted:
            return distrusted
        return UnreachableError(f"{self.address} lets no stream come about: {error.details()}")


def make_hello(**told: Any) -> pb.Hello:
    """The first frame of a site, with what else is to be ``told`` in it."""
    return pb.Hello(protocol=this_protocol(), versions=versions(), **told)


async def shake_hands(stream: Any, hello: pb.Hello) -> pb.Welcome:
    """Introduce this site.

    Raises:
        RefusedError: if the coordinator does not let it in.
        ProtocolError: if the coordinator speaks another protocol.
    """
    await stream.write(pb.SiteFrame(hello=hello))
    async with asyncio.timeout(WELCOME_SECONDS):
        frame = await stream.read()
    kind = frame.WhichOneof("kind") if isinstance(frame, pb.ServerFrame) else None
    if kind == "goodbye":
        raise RefusedError(error_of(frame.goodbye), retry=frame.goodbye.retry)
    if kind != "welcome":
        raise ProtocolError(f"the coordinator answered a Hello with {kind or 'nothing'}")
    welcome: pb.Welcome = frame.welcome
    check_protocol(welcome.protocol, dict(welcome.versions), "the coordinator")
    return welcome


def greet(coordinator: Coordinator) -> Greeting:
    """Connect, be let in, and leave again.

    Raises:
        UnreachableError: if the coordinator does not answer.
        HanseError: of the kind for which it refuses this site.
    """
    return asyncio.run(_greet(coordinator))


async def _greet(coordinator: Coordinator) -> Greeting:
    try:
        async with coordinator.stream() as stream:
            welcome = await shake_hands(stream, make_hello())
            await stream.write(pb.SiteFrame(goodbye=pb.Goodbye(reason="checked")))
            await stream.done_writing()
            said = {name: plain(text, LONGEST_ID) for name, text in welcome.versions.items()}
            return Greeting(versions=said, job=plain(welcome.job, LONGEST_ID))
    except RefusedError as refused:
        raise refused.error from refused
    except TimeoutError as silent:
        raise UnreachableError(f"{coordinator.address} does not say a word") from silent
    except grpc.aio.AioRpcError as error:
        raise await coordinator.explain(error) from error

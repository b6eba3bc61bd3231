"""The gRPC service, in a thread of its own: start, serve, stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hanse.errors import PortInUseError
from hanse.expiry import Expiry
from hanse.identity import node_id_of
from hanse.tls import Identity, IdentitySource
from hanse.wire import hanse_pb2 as pb
from hanse.wire.body import Spool
from hanse.wire.frames import deserializer, serialize
from hanse.wire.limits import Limits
from hanse.wire.protocol import HEARTBEAT_SECONDS, METHOD, SERVICE, grpc_options

from hanse_server.audit import ServerTrail
from hanse_server.journal import Entry, Journal, State
from hanse_server.link.exchange import Exchange
from hanse_server.link.instruction import Instruction, Reply, put_down
from hanse_server.link.reception import Reception
from hanse_server.link.slots import Slots
from hanse_server.metrics import ServerMetrics
from hanse_server.register import Register

log = logging.getLogger("hanse.link")

STOP_SECONDS = 5.0
IDENTITY_SECONDS = 1.0

MOST_STREAMS = 8
"""Streams over one connection: a site needs one, and whoever asks for the health another."""


class LinkServer:
    """Lets the registered sites in and carries messages between them and one app.

    Its methods may be called from any thread.

    Args:
        host: the address to listen on.
        port: 0 for any free one.
        identity: certificate, key and authority of the server; where it is renewed, new
            connections are met with the new one, and those that are open go on.
        register: who is let in.
        journal: what is owed.
        limits: what is taken from a site at most.
        trail: where it is written down what is sent and accepted.
        spool: a folder for replies that are not small; see :class:`Exchange`.
        job: the name of the job, for the sites' logs.
        wants: capabilities that the job is the better for; of a site that lacks one it is told.
        heartbeat_seconds: between two signs of life, both ways.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        identity: IdentitySource,
        register: Register,
        journal: Journal,
        metrics: ServerMetrics,
        limits: Limits | None = None,
        trail: ServerTrail | None = None,
        spool: Path | None = None,
        job: str = "",
        wants: Collection[str] = (),
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.host = host
        self.port = port
        self._identity = identity
        self._register = register
        self._journal = journal
        self._expiry = Expiry(metrics.certificate_expiry)
        self._limits = limits or Limits()
        self._trail = trail or ServerTrail(None)
        self._exchange = Exchange(
            journal,
            metrics,
            self._limits,
            self._trail,
            None if spool is None else Spool(spool),
        )
        self._reception = Reception(
            register=register,
            exchange=self._exchange,
            metrics=metrics,
            trail=self._trail,
            job=job,
            wants=wants,
            heartbeat_seconds=heartbeat_seconds,
        )
        self._thread = threading.Thread(target=self._run, name="hanse-link", daemon=True)
        self._started: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop  # while it runs
        self._stopping = asyncio.Event()

    # --- its life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Listen.

        Raises:
            PortInUseError: if something else listens there.
        """
        self._thread.start()
        self.port = self._started.result()
        log.info("listening on %s:%d", self.host, self.port)

    def stop(self) -> None:
        """Say goodbye to the sites and stop listening, within a few seconds."""
        if self._thread.is_alive():
            self._call(self._stopping.set)
            self._thread.join(2 * STOP_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def limits(self) -> Limits:
        """What is taken from a site at most, whatever it was asked."""
        return self._limits

    # --- what the grid asks for ---------------------------------------------------------------

    def connected(self) -> Mapping[int, str]:
        """The names of the sites that are there now, by node id."""
        return self._reception.connected

    def registered(self) -> Mapping[int, str]:
        """The names of all sites that are let in, by node id."""
        return {node_id_of(name): name for name in self._register.sites()}

    def owed(self, run_id: int) -> list[Entry]:
        """What registered sites were asked in a run, and is neither given up nor settled."""
        registered = self._register.sites()
        return [
            entry
            for entry in self._journal.unsettled()
            if entry.run_id == run_id
            and entry.state is not State.ABANDONED
            and entry.site in registered
        ]

    def traffic(self) -> tuple[int, int]:
        """Bytes of payload received and sent so far."""
        return self._reception.received, self._reception.sent

    def push(
        self, instructions: Collection[Instruction], answer: Callable[[Reply], None], slots: Slots
    ) -> None:
        """Put durably down that replies are owed, then send the instructions.

        Args:
            answer: is called on the link's thread with each reply as it arrives.
        """
        put_down(self._trail, self._journal, instructions)
        self._call(self._exchange.push, instructions, answer, slots)

    def take(self, reply: Reply) -> None:
        """The app has taken a reply."""
        instruction = reply.message.metadata.reply_to_message_id
        self._journal.mark([instruction], State.RECEIVED)
        self._call(self._exchange.taken, instruction, reply.slots)

    def abandon(self, instructions: Collection[str]) -> None:
        """The app goes on without the replies to these."""
        self._journal.mark(instructions, State.ABANDONED)
        self._call(self._exchange.abandon, instructions)

    def outdate(self, instructions: Collection[str]) -> None:
        """The app waits for these still, and goes on meanwhile: they are not sent again."""
        self._call(self._exchange.outdate, instructions)

    def settle(self, *, keep: Collection[str] = (), only: Collection[str] | None = None) -> None:
        """Nobody will ask again for anything but ``keep``; or, of ``only`` these, for any.

        The sites may forget what is settled.
        """
        entries = self._journal.settle(keep=keep, only=only)
        self._trail.settled(entries)
        self._call(self._exchange.settle, entries)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the link has stopped
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- the event loop -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            # The outermost loop of this thread: what goes wrong in it has nowhere else to go.
            if self._started.done():
                log.exception("the link has failed")
            else:
                self._started.set_exception(error)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        options = [
            *grpc_options(self._limits),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", MOST_STREAMS),
        ]
        server = grpc.aio.server(options=options)
        servicer = health.aio.HealthServicer()
        self._add_services(server, servicer)
        try:
            port = self._bind(server)
            await server.start()
            await servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
            self._started.set_result(port)
            await self._serve()
            await servicer.enter_graceful_shutdown()
        finally:
            await server.stop(STOP_SECONDS)

    async def _serve(self) -> None:
        """Let the handlers work until it is time to stop, then say goodbye."""
        watches = [
            asyncio.create_task(self._reception.watch()),
            asyncio.create_task(self._watch_identity()),
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((*watches, stopping), return_when=asyncio.FIRST_COMPLETED)
        for watch in watches:
            if watch.done():
                watch.result()  # it ends only by an error
            watch.cancel()
        for session in self._exchange.sessions.values():
            session.farewell()

    async def _watch_identity(self) -> None:
        """Show when the certificate ends, of which a file may tell anew at any time."""
        while True:
            identity = self._identity.current()
            self._expiry.show("server", identity.not_after, "this server")
            self._expiry.show(
                "authority", identity.authority_not_after, "this federation's authority"
            )
            await asyncio.sleep(IDENTITY_SECONDS)

    def _add_services(
        self, server: grpc.aio.Server, health_servicer: health.aio.HealthServicer
    ) -> None:
        link = grpc.stream_stream_rpc_method_handler(
            self._reception.connect,
            request_deserializer=deserializer(pb.SiteFrame),
            response_serializer=serialize,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {METHOD: link})
        server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    def _bind(self, server: grpc.aio.Server) -> int:
        credentials = _credentials(self._identity)
        address = f"{self.host}:{self.port}"
        try:
            return int(server.add_secure_port(address, credentials))
        except RuntimeError as failed:
            raise PortInUseError(
                f"cannot listen on {address}: {_why_not(self.host, self.port)}"
            ) from failed


def _credentials(source: IdentitySource) -> grpc.ServerCredentials:
    """What each handshake is made with: the identity as it is by then.

    gRPC takes TLS 1.2 and later only; it asks the fetcher before every handshake, on a thread
    of its own.
    """
    used = source.current()

    def renewed() -> Any:
        nonlocal used
        identity = source.current()
        if identity is used:
            return None  # as before
        used = identity
        return _configuration(identity)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used), renewed, require_client_authentication=True
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], root_certificates=identity.ca
    )


def _why_not(host: str, port: int) -> str:
    """Why nothing can listen there, in the operating system's words."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            return error.strerror or str(error)
    return "the address cannot be used"

"""The gRPC service, in a thread of its own: start, serve, stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hanse.errors import (
    HanseError,
    NameTakenError,
    NotRegisteredError,
    PortInUseError,
    ProtocolError,
)
from hanse.identity import node_id_of
from hanse.tls import Identity, fingerprint
from hanse.wire import hanse_pb2 as pb
from hanse.wire.limits import Limits
from hanse.wire.protocol import (
    HEARTBEAT_SECONDS,
    METHOD,
    SERVICE,
    check_protocol,
    goodbye,
    grpc_options,
    this_protocol,
    versions,
)

from hanse_server.journal import Entry, Journal, State
from hanse_server.link.exchange import Exchange, Instruction, Reply, Slots
from hanse_server.link.session import Session
from hanse_server.metrics import ServerMetrics
from hanse_server.register import Register

log = logging.getLogger("hanse.link")

HELLO_SECONDS = 10.0
REGISTER_SECONDS = 1.0
STOP_SECONDS = 5.0


class LinkServer:
    """Lets the registered sites in and carries messages between them and one app.

    Its methods may be called from any thread.

    Args:
        host: the address to listen on.
        port: 0 for any free one.
        identity: certificate, key and authority of the server.
        register: who is let in.
        journal: what is owed.
        limits: what is taken from a site at most.
        job: the name of the job, for the sites' logs.
        heartbeat_seconds: between two signs of life, both ways.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        identity: Identity,
        register: Register,
        journal: Journal,
        metrics: ServerMetrics,
        limits: Limits | None = None,
        job: str = "",
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.host = host
        self.port = port
        self._identity = identity
        self._register = register
        self._journal = journal
        self._metrics = metrics
        self._limits = limits or Limits()
        self._job = job
        self._heartbeat = heartbeat_seconds
        self._exchange = Exchange(journal, metrics, self._limits)
        self._connected: dict[int, str] = {}
        self._seen: set[str] = set()
        self._received = self._sent = 0
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

    # --- what the grid asks for ---------------------------------------------------------------

    def connected(self) -> Mapping[int, str]:
        """The names of the sites that are there now, by node id."""
        return self._connected

    def registered(self) -> Mapping[int, str]:
        """The names of all sites that are let in, by node id."""
        return {node_id_of(name): name for name in self._register.sites()}

    def traffic(self) -> tuple[int, int]:
        """Bytes of payload received and sent so far."""
        return self._received, self._sent

    def push(
        self, instructions: Collection[Instruction], answer: Callable[[Reply], None], slots: Slots
    ) -> None:
        """Note durably that replies are owed, then send the instructions.

        Args:
            answer: is called on the link's thread with each reply as it arrives.
        """
        self._journal.owe(
            Entry(
                instruction=each.id,
                run_id=each.envelope.run_id,
                site=each.site,
                message_type=each.envelope.message_type,
                group_id=each.envelope.group_id,
            )
            for each in instructions
        )
        self._call(self._exchange.push, instructions, answer, slots)

    def take(self, reply: Reply) -> None:
        """The app has taken a reply."""
        self._journal.mark([reply.message.metadata.reply_to_message_id], State.RECEIVED)
        if reply.slots is not None:
            self._call(self._exchange.release, reply.slots)

    def abandon(self, instructions: Collection[str]) -> None:
        """The app goes on without the replies to these."""
        self._journal.mark(instructions, State.ABANDONED)
        self._call(self._exchange.abandon, instructions)

    def settle(self, *, keep: Collection[str]) -> None:
        """Nobody will ask again for anything but ``keep``: the sites may forget the rest."""
        self._call(self._exchange.settle, self._journal.settle(keep=keep))

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the link has stopped
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- the event loop -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            if self._started.done():
                log.exception("the link has failed")
            else:
                self._started.set_exception(error)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = grpc.aio.server(options=[*grpc_options(self._limits), ("grpc.so_reuseport", 0)])
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
        watch = asyncio.create_task(self._watch_register())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((watch, stopping), return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()  # it ends only by an error
        watch.cancel()
        for session in self._exchange.sessions.values():
            session.farewell()

    def _add_services(
        self, server: grpc.aio.Server, health_servicer: health.aio.HealthServicer
    ) -> None:
        link = grpc.stream_stream_rpc_method_handler(
            self._connect,
            request_deserializer=pb.SiteFrame.FromString,
            response_serializer=pb.ServerFrame.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {METHOD: link})
        server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    def _bind(self, server: grpc.aio.Server) -> int:
        identity = self._identity
        credentials = grpc.ssl_server_credentials(
            [(identity.key, identity.certificate)],
            root_certificates=identity.ca,
            require_client_auth=True,
        )
        address = f"{self.host}:{self.port}"
        try:
            return int(server.add_secure_port(address, credentials))
        except RuntimeError as failed:
            raise PortInUseError(
                f"cannot listen on {address}: {_why_not(self.host, self.port)}"
            ) from failed

    async def _watch_register(self) -> None:
        """Send away the sites that were taken out of the register."""
        while True:
            await asyncio.sleep(REGISTER_SECONDS)
            for session in list(self._exchange.sessions.values()):
                try:
                    self._register.admit(session.site, session.fingerprint)
                except NotRegisteredError as error:
                    log.warning("%s: sent away: %s", session.site, error)
                    session.dismiss(error, retry=False)
            self._exchange.refuse_unregistered(self._register.sites())

    # --- one stream -------------------------------------------------------------------------

    async def _connect(self, _: Any, context: Any) -> None:
        try:
            session, hello = await self._greet(context)
        except HanseError as refusal:
            log.warning("refused %s: %s", context.peer(), refusal)
            self._metrics.refused.labels(refusal.label).inc()
            retry = isinstance(refusal, NameTakenError)
            await context.write(pb.ServerFrame(goodbye=goodbye(refusal, retry=retry)))
            return
        self._enter(session, hello)
        try:
            self._exchange.joined(session, hello)
            ended = await session.duplex.run(
                context,
                lambda frame: self._on_frame(session, frame),
                heartbeat_seconds=self._heartbeat,
            )
            log.info("%s: %s", session.site, ended)
        finally:
            self._leave(session)

    async def _greet(self, context: Any) -> tuple[Session, pb.Hello]:
        """Find out who is there, and whether they may come in."""
        name, shown = _peer(context)
        async with asyncio.timeout(HELLO_SECONDS):
            frame = await context.read()
        if not isinstance(frame, pb.SiteFrame) or not frame.HasField("hello"):
            raise ProtocolError(f"site {name!r} did not begin with a Hello")
        check_protocol(frame.hello.protocol, dict(frame.hello.versions), f"site {name!r}")
        self._register.admit(name, shown)
        if name in self._exchange.sessions:
            raise NameTakenError(f"a client called {name!r} is connected already")
        return Session(name, shown, self._count_sent), frame.hello

    def _enter(self, session: Session, hello: pb.Hello) -> None:
        if session.site in self._seen:
            self._metrics.reconnects.labels(session.site).inc()
        self._seen.add(session.site)
        self._connected = self._connected | {session.node_id: session.site}
        self._metrics.connected.labels(session.site).set(1)
        log.info("%s is connected (hanse %s)", session.site, hello.versions.get("hanse", "?"))
        welcome = pb.Welcome(
            protocol=this_protocol(),
            versions=versions(),
            job=self._job,
            heartbeat_seconds=self._heartbeat,
        )
        session.welcome(welcome)

    def _leave(self, session: Session) -> None:
        left = dict(self._connected)
        del left[session.node_id]
        self._connected = left
        self._metrics.connected.labels(session.site).set(0)
        self._exchange.left(session)

    async def _on_frame(self, session: Session, frame: pb.SiteFrame) -> None:
        kind = frame.WhichOneof("kind")
        try:
            if kind == "header":
                self._count_received(session.site, frame.header.ByteSize())
                self._exchange.on_header(session, frame.header)
            elif kind == "chunk":
                self._count_received(session.site, len(frame.chunk.data))
                self._exchange.on_chunk(session, frame.chunk)
        except HanseError as error:
            log.warning("%s: %s", session.site, error)
            session.dismiss(error, retry=True)

    def _count_received(self, site: str, size: int) -> None:
        self._received += size
        self._metrics.received_bytes.labels(site).inc(size)

    def _count_sent(self, site: str, size: int) -> None:
        self._sent += size
        self._metrics.sent_bytes.labels(site).inc(size)


def _peer(context: Any) -> tuple[str, str]:
    """Name and fingerprint of the certificate that the peer has shown; TLS has verified it."""
    shown = context.auth_context()
    names = shown.get("x509_common_name", [b""])
    return names[0].decode(errors="replace"), fingerprint(shown["x509_pem_cert"][0])


def _why_not(host: str, port: int) -> str:
    """Why nothing can listen there, in the operating system's words."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            return error.strerror or str(error)
    return "the address cannot be used"

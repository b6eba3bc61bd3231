"""Where streams come in: who is there, may they, and for how long."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from cryptography import x509
from hanse.errors import (
    CertificateExpiredError,
    HanseError,
    NameTakenError,
    NotRegisteredError,
    ProtocolError,
)
from hanse.expiry import Expiry
from hanse.tls import fingerprint
from hanse.wire import hanse_pb2 as pb
from hanse.wire.protocol import check_protocol, goodbye, this_protocol, versions

from hanse_server.audit import ServerTrail
from hanse_server.link.exchange import Exchange
from hanse_server.link.session import Session, Shown
from hanse_server.metrics import ServerMetrics
from hanse_server.register import Register

log = logging.getLogger("hanse.link")

HELLO_SECONDS = 10.0
REGISTER_SECONDS = 1.0


class Reception:
    """Lets registered sites in, one stream each, and sends away who may stay no longer.

    Attributes:
        connected: the names of the sites that are there now, by node id; never changed in
            place, so that any thread may read it.
        received, sent: bytes of payload so far.
    """

    def __init__(
        self,
        *,
        register: Register,
        exchange: Exchange,
        metrics: ServerMetrics,
        trail: ServerTrail,
        job: str,
        heartbeat_seconds: float,
    ) -> None:
        self._register = register
        self._exchange = exchange
        self._metrics = metrics
        self._trail = trail
        self._job = job
        self._heartbeat_seconds = heartbeat_seconds
        self._expiry = Expiry(metrics.site_certificate_expiry)
        self._seen: set[str] = set()
        self.connected: dict[int, str] = {}
        self.received = self.sent = 0

    async def watch_register(self) -> None:
        """Send away who was taken out of the register, or whose certificate is over; let the trail
        catch up.
        """
        while True:
            await asyncio.sleep(REGISTER_SECONDS)
            await asyncio.to_thread(self._trail.catch_up)
            for session in self._exchange.sessions.values():
                if not session.duplex.outgoing.closed:  # it is not on its way out
                    self._look_at(session)
            registered = self._register.sites()
            self._exchange.refuse_unregistered(registered)
            for name in self._seen - registered.keys():
                self._expiry.forget(name)

    def _look_at(self, session: Session) -> None:
        certificate = session.certificate
        try:
            self._register.admit(session.site, certificate.fingerprint)
            certificate.check_date(session.site)
        except (NotRegisteredError, CertificateExpiredError) as error:
            self._send_away(session, error, retry=False)
        else:
            self._expiry.show(session.site, certificate.expires, f"site {session.site}")

    async def connect(self, _: Any, context: Any) -> None:
        """Serve one stream; gRPC calls this."""
        try:
            session, hello = await self._greet(context)
        except HanseError as refusal:
            log.warning("refused %s: %s", context.peer(), refusal)
            name, shown = _peer(context)
            self._trail.turned_away(name, shown.fingerprint, refusal)
            self._metrics.refused.labels(refusal.label).inc()
            retry = isinstance(refusal, NameTakenError)
            await context.write(pb.ServerFrame(goodbye=goodbye(refusal, retry=retry)))
            return
        self._enter(session, hello)
        ended = "the stream broke off"
        try:
            self._exchange.joined(session, hello)
            ended = await session.duplex.run(
                context,
                lambda frame: self._on_frame(session, frame),
                heartbeat_seconds=self._heartbeat_seconds,
            )
            log.info("%s: %s", session.site, ended)
        finally:
            self._leave(session)
            self._trail.left(session.site, ended)

    async def _greet(self, context: Any) -> tuple[Session, pb.Hello]:
        """Find out who is there, and whether they may come in."""
        name, shown = _peer(context)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                frame = await context.read()
        except TimeoutError as silent:
            raise ProtocolError(f"site {name!r} said nothing for {HELLO_SECONDS:.0f} s") from silent
        if not isinstance(frame, pb.SiteFrame) or not frame.HasField("hello"):
            raise ProtocolError(f"site {name!r} did not begin with a Hello")
        check_protocol(frame.hello.protocol, dict(frame.hello.versions), f"site {name!r}")
        self._register.admit(name, shown.fingerprint)
        shown.check_date(name)
        if name in self._exchange.sessions:
            raise NameTakenError(f"a client called {name!r} is connected already")
        return Session(name, shown, self._count_sent), frame.hello

    def _enter(self, session: Session, hello: pb.Hello) -> None:
        if session.site in self._seen:
            self._metrics.reconnects.labels(session.site).inc()
        self._seen.add(session.site)
        self.connected = self.connected | {session.node_id: session.site}
        self._metrics.connected.labels(session.site).set(1)
        self._expiry.show(session.site, session.certificate.expires, f"site {session.site}")
        version = hello.versions.get("hanse", "?")
        self._trail.joined(session.site, session.certificate.fingerprint, version)
        log.info("%s is connected (hanse %s)", session.site, version)
        welcome = pb.Welcome(
            protocol=this_protocol(),
            versions=versions(),
            job=self._job,
            heartbeat_seconds=self._heartbeat_seconds,
        )
        session.welcome(welcome)

    def _leave(self, session: Session) -> None:
        left = dict(self.connected)
        del left[session.node_id]
        self.connected = left
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
            self._send_away(session, error, retry=True)

    def _send_away(self, session: Session, error: HanseError, *, retry: bool) -> None:
        log.warning("%s: sent away: %s", session.site, error)
        self._trail.turned_away(session.site, session.certificate.fingerprint, error)
        session.dismiss(error, retry=retry)

    def _count_received(self, site: str, size: int) -> None:
        self.received += size
        self._metrics.received_bytes.labels(site).inc(size)

    def _count_sent(self, site: str, size: int) -> None:
        self.sent += size
        self._metrics.sent_bytes.labels(site).inc(size)


def _peer(context: Any) -> tuple[str, Shown]:
    """Name and certificate that the peer has shown; TLS has verified it."""
    shown = context.auth_context()
    names = shown.get("x509_common_name", [b""])
    pem = shown["x509_pem_cert"][0]
    expires = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    return names[0].decode(errors="replace"), Shown(fingerprint=fingerprint(pem), expires=expires)

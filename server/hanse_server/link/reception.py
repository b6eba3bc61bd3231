"""Where streams come in: who is there, may they, and for how long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from cryptography import x509
from hanse.errors import (
    CertificateExpiredError,
    HanseError,
    NameTakenError,
    NotRegisteredError,
    ProtocolError,
    WireError,
)
from hanse.expiry import Expiry
from hanse.plain import plain
from hanse.tls import fingerprint
from hanse.wire import hanse_pb2 as pb
from hanse.wire.duplex import LINGER_SECONDS
from hanse.wire.frames import header_of
from hanse.wire.protocol import (
    LONGEST_ID,
    check_hello,
    check_protocol,
    goodbye,
    this_protocol,
    versions,
)

from hanse_server.audit import ServerTrail
from hanse_server.link.exchange import Exchange
from hanse_server.link.manners import Manners
from hanse_server.link.session import Session, Shown
from hanse_server.metrics import ServerMetrics
from hanse_server.register import Register, RegisteredSite, admit

log = logging.getLogger("hanse.link")

HELLO_SECONDS = 10.0
WATCH_SECONDS = 1.0

MOST_GREETING = 4
"""Streams of one site that have not said Hello yet."""


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
        wants: Collection[str],
        heartbeat_seconds: float,
    ) -> None:
        self._register = register
        self._exchange = exchange
        self._metrics = metrics
        self._trail = trail
        self._job = job
        self._wants = wants
        self._heartbeat_seconds = heartbeat_seconds
        self._expiry = Expiry(metrics.site_certificate_expiry)
        self._seen: set[str] = set()
        self._greeting: Counter[str] = Counter()
        self._manners = Manners()
        self.connected: dict[int, str] = {}
        self.received = self.sent = 0

    async def watch(self) -> None:
        """Send away who may be here no longer or holds up others; let the trail catch up."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await asyncio.to_thread(self._trail.catch_up)
            registered = self._register.entries()
            for session in self._exchange.sessions.values():
                if not session.duplex.outgoing.closed:  # it is not on its way out
                    self._look_at(session, registered)
            self._exchange.refuse_unregistered(registered)
            for name in self._seen - registered.keys():
                self._expiry.forget(name)
            for session, why in self._exchange.slow(time.monotonic()):
                self._send_away(session, WireError(why), retry=True)

    def _look_at(self, session: Session, registered: Mapping[str, RegisteredSite]) -> None:
        certificate = session.certificate
        try:
            admit(registered, session.site, certificate.fingerprint)
            certificate.check_date(session.site)
        except (NotRegisteredError, CertificateExpiredError) as error:
            self._send_away(session, error, retry=False)
        else:
            self._expiry.show(session.site, certificate.expires, f"site {session.site}")

    async def connect(self, _: Any, context: Any) -> None:
        """Serve one stream; gRPC calls this."""
        name, shown = _peer(context)
        try:
            session, hello = await self._greet(context, name, shown)
        except HanseError as refusal:
            self._trail.turned_away(name, shown.fingerprint, refusal)
            known = name if name in self._register.sites() else ""
            self._exchange.complaints.tell(known, f"refused {context.peer()}: {refusal}")
            self._metrics.refused.labels(refusal.label).inc()
            retry = isinstance(refusal, NameTakenError | WireError)
            await context.write(pb.ServerFrame(goodbye=goodbye(refusal, retry=retry)))
            with suppress(TimeoutError):  # a stream that is ended at once takes the word with it
                async with asyncio.timeout(LINGER_SECONDS):
                    await context.read()
            return
        self._enter(session, hello)
        ended = "the stream broke off"
        try:
            self._join(session, hello)
            ended = await session.duplex.run(
                context,
                lambda frame: self._on_frame(session, frame),
                heartbeat_seconds=self._heartbeat_seconds,
            )
            log.info("%s: %s", session.site, ended)
        finally:
            self._leave(session)
            self._trail.left(session.site, ended)

    async def _greet(self, context: Any, name: str, shown: Shown) -> tuple[Session, pb.Hello]:
        """Find out who is there, and whether they may come in."""
        self._admit(name, shown)  # first: of who may not come in nothing is read
        self._manners.let_in(name)
        with self._greeted(name):
            hello = await _hello(context, name)
        self._admit(name, shown)  # again: meanwhile another may have come in
        return Session(name, shown, self._exchange.window, self._count_sent), hello

    def _admit(self, name: str, shown: Shown) -> None:
        self._register.admit(name, shown.fingerprint)
        shown.check_date(name)
        if name in self._exchange.sessions:
            raise NameTakenError(f"a client called {name!r} is connected already")

    @contextmanager
    def _greeted(self, name: str) -> Iterator[None]:
        """While a stream is awaited to say Hello; there are few of them for each site."""
        if self._greeting[name] >= MOST_GREETING:
            raise NameTakenError(f"{MOST_GREETING} clients called {name!r} are being greeted")
        self._greeting[name] += 1
        try:
            yield
        finally:
            self._greeting[name] -= 1

    def _enter(self, session: Session, hello: pb.Hello) -> None:
        if session.site in self._seen:
            self._metrics.reconnects.labels(session.site).inc()
        self._seen.add(session.site)
        self._expiry.show(session.site, session.certificate.expires, f"site {session.site}")
        theirs = plain(hello.versions.get("hanse", "?"), LONGEST_ID)
        self._trail.joined(session.site, session.certificate.fingerprint, theirs)
        log.info("%s is connected (hanse %s)", session.site, theirs)
        lacking = sorted(set(self._wants).difference(hello.capabilities))
        if lacking:
            log.warning(
                "%s (hanse %s) does not know %s: what it sends is taken as it is",
                *(session.site, theirs, ", ".join(lacking)),
            )
        # The last, once all else has gone well: who is not let in to the end does not leave either.
        self.connected = self.connected | {session.node_id: session.site}
        self._metrics.connected.labels(session.site).set(1)
        welcome = pb.Welcome(
            protocol=this_protocol(),
            versions=versions(),
            job=self._job,
            heartbeat_seconds=self._heartbeat_seconds,
        )
        session.welcome(welcome)

    def _join(self, session: Session, hello: pb.Hello) -> None:
        try:
            self._exchange.joined(session, hello)
        except WireError as error:
            self._send_away(session, error, retry=True)

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
                header, body = header_of(frame)
                self._count_received(session.site, header.ByteSize() + len(body))
                self._exchange.on_header(session, header, body)
            elif kind == "chunk":
                self._count_received(session.site, len(frame.chunk.data))
                self._exchange.on_chunk(session, frame.chunk)
            elif kind == "hello":
                raise WireError("a second Hello")
            elif kind != "goodbye":
                session.stray(f"a frame of kind {kind or 'unknown'}")
        except HanseError as error:
            self._send_away(session, error, retry=True)

    def _send_away(self, session: Session, error: HanseError, *, retry: bool) -> None:
        """End a stream, and say why; an offender who may come back does so after a pause."""
        if session.duplex.outgoing.closed:
            return
        self._exchange.complaints.tell(session.site, f"sent away: {error}")
        self._trail.turned_away(session.site, session.certificate.fingerprint, error)
        self._metrics.dismissed.labels(session.site, error.label).inc()
        if isinstance(error, WireError):  # not a full disk, of which no site is guilty
            self._manners.offended(session.site)
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


async def _hello(context: Any, name: str) -> pb.Hello:
    """The first frame of a stream."""
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            frame = await context.read()
    except TimeoutError as silent:
        raise ProtocolError(f"site {name!r} said nothing for {HELLO_SECONDS:.0f} s") from silent
    if not isinstance(frame, pb.SiteFrame) or not frame.HasField("hello"):
        raise ProtocolError(f"site {name!r} did not begin with a Hello")
    check_hello(frame.hello, f"site {name!r}")
    check_protocol(frame.hello.protocol, dict(frame.hello.versions), f"site {name!r}")
    hello: pb.Hello = frame.hello
    return hello

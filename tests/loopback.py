"""A federation in one process, over real TLS on loopback."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Message
from hanse.errors import HanseError
from hanse.keys import write_secret
from hanse.tls import Identity, IdentitySource, load_identity
from hanse.wire.limits import Limits
from hanse_client.link import Coordinator, LinkClient
from hanse_client.metrics import ClientMetrics
from hanse_client.outbox import Outbox
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.journal import Journal
from hanse_server.link import LinkServer
from hanse_server.metrics import ServerMetrics
from hanse_server.provisioning.authority import Authority, Credentials
from hanse_server.register import Register, add_site
from prometheus_client import CollectorRegistry

Execute = Callable[[Message], Message]

RUN_ID = 7
HEARTBEAT_SECONDS = 0.5


@dataclass
class RunningServer:
    """A server that listens, and what a test may look at."""

    link: LinkServer
    metrics: ServerMetrics
    journal: Journal

    def grid(self, *, auto_settle: bool = False) -> GrpcGrid:
        """A grid over the link."""
        return GrpcGrid(self.link, RUN_ID, auto_settle=auto_settle)

    def await_sites(self, *names: str, seconds: float = 20.0) -> None:
        """Wait until just these sites are connected."""
        wait_until(lambda: set(self.link.connected().values()) == set(names), seconds)


class RunningClient:
    """A client in a thread of its own."""

    def __init__(self, link: LinkClient, outbox: Outbox, metrics: ClientMetrics) -> None:
        self.link = link
        self.outbox = outbox
        self.metrics = metrics
        self.ended_by: HanseError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.link.run()
        except HanseError as error:
            self.ended_by = error

    def stop(self) -> None:
        """Stop in good order."""
        self.link.stop()
        self.await_end()

    def await_end(self, seconds: float = 20.0) -> HanseError | None:
        """Wait until the client has ended; the error that it ended with, if any."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the client did not end"
        return self.ended_by


class Loopback:
    """Certificates, a register, one server at a time and any number of clients."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.authority = Authority.create(folder / "federation")
        self._server = self.authority.issue_server("server", ["localhost", "127.0.0.1"])
        self.register = folder / "sites.toml"
        self.register.touch()
        self._stack = ExitStack()
        self._issued: dict[str, Credentials] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def server(self, *, identity: IdentitySource | None = None, **settings: Any) -> RunningServer:
        """Start a server on the federation's port; ``settings`` are LinkServer's."""
        journal = Journal(self.folder / "journal.sqlite")
        metrics = ServerMetrics(CollectorRegistry())
        link = LinkServer(
            host="127.0.0.1",
            port=self.port,
            identity=identity or self.identity(self._server),
            register=Register(self.register),
            journal=journal,
            metrics=metrics,
            **{"heartbeat_seconds": HEARTBEAT_SECONDS, **settings},
        )
        link.start()
        self._stack.callback(journal.close)
        self._stack.callback(link.stop)
        return RunningServer(link, metrics, journal)

    def client(
        self,
        name: str,
        execute: Execute,
        *,
        registered: bool = True,
        identity: IdentitySource | None = None,
        limits: Limits | None = None,
        port: int | None = None,
        **settings: Any,
    ) -> RunningClient:
        """Start a client; one that was started before keeps its certificate and outbox."""
        issued = self.issue(name, registered=registered)
        outbox = Outbox(self.folder / f"outbox-{name}.sqlite")
        metrics = ClientMetrics(CollectorRegistry())
        link = LinkClient(
            coordinator=Coordinator(
                address=f"127.0.0.1:{port or self.port}",
                identity=identity or self.identity(issued),
                limits=limits or Limits(),
            ),
            execute=execute,
            outbox=outbox,
            metrics=metrics,
            **settings,
        )
        client = RunningClient(link, outbox, metrics)
        self._stack.callback(outbox.close)
        self._stack.callback(client.stop)
        return client

    def issue(self, name: str, *, registered: bool = True) -> Credentials:
        """The certificate of a site, registered or not."""
        if name not in self._issued:
            self._issued[name] = self.authority.issue_site(name)
            if registered:
                add_site(self.register, name, self._issued[name].fingerprint)
        return self._issued[name]

    @property
    def server_identity(self) -> Identity:
        """The server's."""
        return self.identity(self._server)

    def take_certificate(self, name: str, issued: Credentials) -> None:
        """Let a site show another certificate from now on than it is registered with."""
        self._issued[name] = issued

    def identity(self, issued: Credentials, authority: Authority | None = None) -> Identity:
        """An identity read from files, under an authority of the test's choice."""
        return load_identity(*self.files(issued, authority))

    def files(
        self, issued: Credentials, authority: Authority | None = None
    ) -> tuple[Path, Path, Path]:
        """The files of an identity: authority, certificate, key."""
        folder = self.folder / f"tls-{issued.name}-{issued.fingerprint[:8]}"
        folder.mkdir(exist_ok=True)
        contents = {
            "ca.pem": (authority or self.authority).certificate_pem,
            "cert.pem": issued.certificate_pem,
            "key.pem": issued.key_pem,
        }
        for name, pem in contents.items():
            write_secret(folder / name, pem)
        ca, certificate, key = (folder / name for name in contents)
        return ca, certificate, key


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that happens in another thread or process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


logging.getLogger("hanse").setLevel(logging.DEBUG)

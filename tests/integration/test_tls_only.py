"""Nothing is said in plaintext, or under a TLS before 1.2, by either end."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hanse.errors import HanseError, UnreachableError
from hanse.tls import load_identity
from hanse.wire import hanse_pb2 as pb
from hanse.wire.protocol import METHOD, SERVICE
from hanse_client.link import Coordinator, greet

from tests.loopback import Loopback

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
OLD = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
GOOD = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def context(
    role: ssl.Purpose, files: tuple[Path, Path, Path], version: ssl.TLSVersion
) -> ssl.SSLContext:
    """A peer with the right certificate that speaks this version alone, however old."""
    ca, certificate, key = files
    made = ssl.create_default_context(role, cafile=str(ca))
    made.load_cert_chain(certificate, key)
    made.verify_mode = ssl.CERT_REQUIRED
    made.set_ciphers("ALL:@SECLEVEL=0")
    made.set_alpn_protocols(["h2"])
    made.minimum_version = made.maximum_version = version
    return made


class TlsServer:
    """Shakes hands with whoever comes; what came of it."""

    def __init__(self, made: ssl.SSLContext) -> None:
        self._context = made
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.agreed: list[str | None] = []
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(connection, server_side=True) as wrapped:
                    self.agreed.append(wrapped.version())
            except OSError as error:
                self.failed.append(getattr(error, "reason", None) or str(error))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@contextmanager
def tls_server(made: ssl.SSLContext) -> Iterator[TlsServer]:
    server = TlsServer(made)
    try:
        yield server
    finally:
        server.close()


def connect(made: ssl.SSLContext, port: int) -> str | None:
    """The version that a handshake ends with."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        made.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return wrapped.version()


@pytest.mark.parametrize("version", GOOD, ids=lambda version: version.name)
def test_the_server_takes(loopback: Loopback, version: ssl.TLSVersion) -> None:
    loopback.server()
    made = context(ssl.Purpose.SERVER_AUTH, loopback.files(loopback.issue("north")), version)

    assert connect(made, loopback.port) == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", OLD, ids=lambda version: version.name)
def test_the_server_refuses(loopback: Loopback, version: ssl.TLSVersion) -> None:
    loopback.server()
    files = loopback.files(loopback.issue("north"))
    made = context(ssl.Purpose.SERVER_AUTH, files, version)
    old_server = loopback.files(loopback.authority.issue_server("old", ["localhost"]))

    with tls_server(context(ssl.Purpose.CLIENT_AUTH, old_server, version)) as old:
        assert connect(made, old.port) == version.name.replace("_", ".")  # it does speak that
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(made, loopback.port)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", OLD, ids=lambda version: version.name)
def test_the_client_refuses(loopback: Loopback, version: ssl.TLSVersion) -> None:
    files = loopback.files(loopback.authority.issue_server("server", ["127.0.0.1"]))
    made = context(ssl.Purpose.CLIENT_AUTH, files, version)
    with tls_server(made) as server, pytest.raises(HanseError):
        greet(coordinator(loopback, server.port))

    assert server.agreed == []
    assert set(server.failed) == {"UNSUPPORTED_PROTOCOL"}


@pytest.mark.parametrize("version", GOOD, ids=lambda version: version.name)
def test_the_client_takes(loopback: Loopback, version: ssl.TLSVersion) -> None:
    files = loopback.files(loopback.authority.issue_server("server", ["127.0.0.1"]))
    made = context(ssl.Purpose.CLIENT_AUTH, files, version)
    with tls_server(made) as server, pytest.raises(HanseError):  # it is no coordinator
        greet(coordinator(loopback, server.port))

    assert version.name.replace("_", ".") in server.agreed


def test_a_plaintext_client_gets_nowhere(loopback: Loopback) -> None:
    server = loopback.server()
    with grpc.insecure_channel(f"127.0.0.1:{loopback.port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        with pytest.raises(grpc.RpcError) as refused:
            check(health_pb2.HealthCheckRequest(), timeout=5)
    with socket.create_connection(("127.0.0.1", loopback.port), timeout=10) as plain:
        plain.sendall(HTTP2_PREFACE)
        answered = _all_of(plain)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not answered.startswith(b"\0")  # no frame of HTTP/2: an alert of TLS, or nothing
    assert not server.link.connected()


def test_a_plaintext_server_hears_nothing(loopback: Loopback) -> None:
    heard: list[Any] = []

    def overhear(frames: Iterator[pb.SiteFrame], _: Any) -> Iterator[pb.ServerFrame]:
        for frame in frames:
            heard.append(frame)
            yield pb.ServerFrame(welcome=pb.Welcome())

    handler = grpc.stream_stream_rpc_method_handler(
        overhear,
        request_deserializer=pb.SiteFrame.FromString,
        response_serializer=pb.ServerFrame.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(
                f"/{SERVICE}/{METHOD}",
                request_serializer=pb.SiteFrame.SerializeToString,
                response_deserializer=pb.ServerFrame.FromString,
            )
            next(call(iter([pb.SiteFrame(hello=pb.Hello())]), timeout=5))  # it does hear
        assert len(heard) == 1
        with pytest.raises(UnreachableError):
            greet(coordinator(loopback, port))
    finally:
        server.stop(0)

    assert len(heard) == 1


def coordinator(loopback: Loopback, port: int) -> Coordinator:
    identity = load_identity(*loopback.files(loopback.issue("north")))
    return Coordinator(address=f"127.0.0.1:{port}", identity=identity)


def _all_of(plain: socket.socket) -> bytes:
    got = b""
    try:
        while piece := plain.recv(4096):
            got += piece
    except ConnectionResetError:
        pass
    return got

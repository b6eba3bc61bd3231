"""Who is not let in, or is sent away: each with its typed error at the site."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hanse.errors import (
    CertificateError,
    CertificateExpiredError,
    NameTakenError,
    NotRegisteredError,
    PortInUseError,
    ProtocolError,
    UnreachableError,
)
from hanse.identity import node_id_of
from hanse.tls import Identity
from hanse.wire import hanse_pb2 as pb
from hanse_client.link import Coordinator, greet
from hanse_client.link.coordinator import RefusedError, shake_hands
from hanse_server.provisioning.authority import Authority
from hanse_server.register import remove_site

from tests.loopback import Loopback, RunningServer, wait_until


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def refusals(server: RunningServer, reason: str) -> float:
    return float(server.metrics.refused.labels(reason)._value.get())


def exchange(server: RunningServer, name: str) -> list[Message]:
    grid = server.grid()
    content = RecordDict({"config": ConfigRecord({"n": 1})})
    message = Message(content, node_id_of(name), "query")
    return list(grid.send_and_receive([message], timeout=20))


def test_an_unregistered_site_ends_with_the_reason(loopback: Loopback) -> None:
    server = loopback.server()
    stranger = loopback.client("stranger", echo, registered=False)

    error = stranger.await_end()

    assert isinstance(error, NotRegisteredError)
    assert "'stranger' is not in the server's register" in error.message
    assert refusals(server, "not_registered") == 1


def test_a_site_with_another_certificate_than_registered_is_refused(loopback: Loopback) -> None:
    loopback.server()
    loopback.issue("north")
    newer = loopback.authority.issue_site("north")
    coordinator = Coordinator(
        address=f"127.0.0.1:{loopback.port}", identity=loopback.identity(newer)
    )

    with pytest.raises(NotRegisteredError, match="is registered with the certificate"):
        greet(coordinator)


def test_a_site_that_is_taken_out_of_the_register_is_sent_away(loopback: Loopback) -> None:
    server = loopback.server()
    removed, kept = loopback.client("removed", echo), loopback.client("kept", echo)
    server.await_sites("removed", "kept")

    remove_site(loopback.register, "removed")

    assert isinstance(removed.await_end(seconds=5), NotRegisteredError)
    server.await_sites("kept")
    assert len(exchange(server, "kept")) == 1
    assert kept.ended_by is None


def test_what_is_owed_by_a_site_that_cannot_come_is_answered(loopback: Loopback) -> None:
    server = loopback.server()

    (reply,) = exchange(server, "nobody")

    assert reply.error.code == NotRegisteredError.exit_code


def test_two_clients_with_one_name(loopback: Loopback) -> None:
    server = loopback.server()
    first = loopback.client("north", echo)
    server.await_sites("north")

    second = loopback.client("north", echo, name_taken_seconds=1.0)

    assert isinstance(second.await_end(), NameTakenError)
    assert refusals(server, "name_taken") >= 2  # it has tried again
    assert first.ended_by is None
    assert len(exchange(server, "north")) == 1


def test_a_server_of_another_authority(
    loopback: Loopback, authority: Callable[[str], Authority]
) -> None:
    loopback.server()
    other = authority("other")
    identity = loopback.identity(other.issue_site("north"), other)
    coordinator = Coordinator(address=f"127.0.0.1:{loopback.port}", identity=identity)

    with pytest.raises(CertificateError, match="another authority"):
        greet(coordinator)


def test_an_expired_certificate_is_named_with_its_date(loopback: Loopback) -> None:
    issued = loopback.authority.issue_site(
        "north", days=1, start=datetime.now(UTC) - timedelta(days=2)
    )
    with pytest.raises(CertificateExpiredError, match=r"cert\.pem: expired on \d{4}-\d\d-\d\d"):
        loopback.identity(issued)


def test_a_server_with_an_expired_certificate_is_told_apart(loopback: Loopback) -> None:
    fresh = loopback.authority.issue_server("server", ["127.0.0.1"])
    expired = loopback.authority.issue_server(
        "server", ["127.0.0.1"], days=1, start=datetime.now(UTC) - timedelta(days=2)
    )
    identity = _with_certificate(loopback.identity(fresh), expired.certificate_pem, expired.key_pem)
    loopback.server(identity=identity)
    client = loopback.client("north", echo)

    error = client.await_end()

    assert isinstance(error, CertificateExpiredError)
    assert f"127.0.0.1:{loopback.port}: expired on" in error.message


def test_another_major_version_is_refused_by_name(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = loopback.server()
    coordinator = _coordinator(loopback)

    async def connect(protocol: pb.Protocol) -> str:
        async with coordinator.stream() as stream:
            hello = pb.Hello(protocol=protocol, versions={"hanse": "9.9"})
            return (await shake_hands(stream, hello)).versions["hanse"]

    with pytest.raises(RefusedError) as refused:
        asyncio.run(connect(pb.Protocol(major=2)))

    assert isinstance(refused.value.error, ProtocolError)
    assert not refused.value.retry
    assert "protocol 2.0 (hanse 9.9)" in refused.value.error.message
    assert refusals(server, "protocol") == 1
    assert asyncio.run(connect(pb.Protocol(major=1, minor=99)))


def test_a_port_that_is_taken(loopback: Loopback) -> None:
    taken = pytest.raises(PortInUseError, match=f":{loopback.port}: Address already in use")
    with socket.create_server(("127.0.0.1", loopback.port)), taken:
        loopback.server()


def test_two_servers_never_share_a_port(loopback: Loopback) -> None:
    loopback.server()
    with pytest.raises(PortInUseError):
        loopback.server()


def test_nobody_listens(loopback: Loopback) -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        greet(_coordinator(loopback))


def test_greeting_tells_what_the_server_runs(loopback: Loopback) -> None:
    server = loopback.server(job="heart")

    greeting = greet(_coordinator(loopback))

    assert greeting.job == "heart"
    assert "hanse" in greeting.versions
    wait_until(lambda: not server.link.connected())


def test_a_stranger_without_a_certificate_gets_no_stream(loopback: Loopback) -> None:
    loopback.server()
    credentials = grpc.ssl_channel_credentials(loopback.authority.certificate_pem)
    with grpc.secure_channel(f"127.0.0.1:{loopback.port}", credentials) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        with pytest.raises(grpc.RpcError) as refused:
            check(health_pb2.HealthCheckRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_health_is_served_to_members(loopback: Loopback) -> None:
    loopback.server()
    identity = _coordinator(loopback).identity.current()
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    with grpc.secure_channel(f"127.0.0.1:{loopback.port}", credentials) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(service="hanse.Link"), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_stopping_tells_the_sites_to_come_again(loopback: Loopback) -> None:
    server = loopback.server()
    client = loopback.client("north", echo)
    server.await_sites("north")

    server.link.stop()
    server.journal.close()
    wait_until(lambda: client.metrics.connected._value.get() == 0)
    again = loopback.server()

    again.await_sites("north")
    assert client.ended_by is None


def _coordinator(loopback: Loopback) -> Coordinator:
    identity = loopback.identity(loopback.issue("probe"))
    return Coordinator(address=f"127.0.0.1:{loopback.port}", identity=identity)


def _with_certificate(identity: Identity, certificate: bytes, key: bytes) -> Identity:
    return replace(identity, certificate=certificate, key=key)

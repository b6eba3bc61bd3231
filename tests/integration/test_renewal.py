"""Certificates are renewed, retired and end while a run goes on."""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hanse.errors import CertificateExpiredError, NotRegisteredError
from hanse.identity import node_id_of
from hanse.keys import write_secret
from hanse.renewal import IdentityFiles, install
from hanse.tls import fingerprint, load_identity, next_key
from hanse_client.link import Coordinator, greet
from hanse_client.renew import ask, take
from hanse_client.site import Site
from hanse_server.grpc_grid import GrpcGrid
from hanse_server.provisioning.authority import Authority
from hanse_server.provisioning.renewal import check_prover
from hanse_server.register import Register, remove_site, renew_site, retire_site

from tests.loopback import Loopback, RunningServer, wait_until

DAY = timedelta(days=1)


class Echo:
    """Answers with what it got, after a moment, and counts how often it was asked for what."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.executed: Counter[str] = Counter()
        self._seconds = seconds

    def __call__(self, message: Message) -> Message:
        self.executed[message.metadata.group_id] += 1
        time.sleep(self._seconds)
        return Message(message.content, reply_to=message)


def one_round(grid: GrpcGrid, number: int) -> set[str]:
    """Ask whoever is connected, as a round does; who has answered."""
    content = RecordDict({"config": ConfigRecord({"round": number})})
    messages = [
        Message(content, node, "train", group_id=str(number)) for node in grid.get_node_ids()
    ]
    replies = list(grid.send_and_receive(messages, timeout=20))
    grid.settle()
    return {grid.site_name(reply.metadata.src_node_id) for reply in replies}


def site_of(files: tuple[Path, Path, Path], name: str) -> Site:
    ca, certificate, key = files
    return Site.model_validate(
        {
            "name": name,
            "coordinator": "localhost:1",
            "tls": {"ca": ca, "certificate": certificate, "key": key},
            "data": {"train": "none"},
            "budget": {"epsilon": 1.0},
        }
    )


def renew(loopback: Loopback, site: Site, *, keep_key: bool = False) -> datetime:
    """Ask, sign, take: what the two administrators do; when the new certificate ends."""
    request = ask(site, keep_key=keep_key).request.read_bytes()
    check_prover(Register(loopback.register).entries()[site.name], request)
    issued = loopback.authority.sign_request(request, site.name, days=99)
    renew_site(loopback.register, site.name, issued.fingerprint, issued.expires)
    signed = site.tls.certificate.with_name("signed.pem")
    signed.write_bytes(issued.certificate_pem)
    take(site, signed)
    return issued.expires


def shown_by(server: RunningServer, site: str) -> float:
    return float(server.metrics.site_certificate_expiry.labels(site)._value.get())


def shown_sites(server: RunningServer) -> list[str]:
    (family,) = server.metrics.site_certificate_expiry.collect()
    return [sample.labels["site"] for sample in family.samples]


def refusals(server: RunningServer) -> float:
    (family,) = server.metrics.refused.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


@pytest.mark.parametrize("keep_key", [False, True])
def test_a_site_renews_in_mid_run_and_misses_no_round(loopback: Loopback, keep_key: bool) -> None:
    files = loopback.files(loopback.issue("north"))
    before = load_identity(*files)
    north, south = Echo(0.02), Echo(0.02)
    server = loopback.server()
    client = loopback.client("north", north, identity=IdentityFiles(*files))
    loopback.client("south", south)
    server.await_sites("north", "south")
    grid = server.grid()
    answered: list[set[str]] = []

    def rounds_until(number: int) -> None:
        while len(answered) < number:
            answered.append(one_round(grid, len(answered)))

    rounds_until(5)
    expires = renew(loopback, site_of(files, "north"), keep_key=keep_key)
    while shown_by(server, "north") != expires.timestamp():
        rounds_until(len(answered) + 1)
        assert len(answered) < 1000
    retire_site(loopback.register, "north")
    rounds_until(len(answered) + 60)  # more than a second: the register is read by then

    assert set(map(frozenset, answered)) == {frozenset({"north", "south"})}
    for site in (north, south):
        assert site.executed == Counter({str(number): 1 for number in range(len(answered))})
    assert client.ended_by is None
    assert client.metrics.reconnects._value.get() == 1
    assert refusals(server) == 0
    address = f"127.0.0.1:{loopback.port}"
    with pytest.raises(NotRegisteredError, match="is registered with the certificate"):
        greet(Coordinator(address=address, identity=before))


def test_a_site_whose_old_certificate_is_retired_at_once_comes_back_with_the_new(
    loopback: Loopback,
) -> None:
    files = loopback.files(loopback.issue("north"))
    begun, go = threading.Event(), threading.Event()
    north = Echo()

    def slow(message: Message) -> Message:
        begun.set()
        go.wait(20)
        return north(message)

    server = loopback.server()
    client = loopback.client("north", slow, identity=IdentityFiles(*files))
    server.await_sites("north")
    content = RecordDict({"config": ConfigRecord({"n": 1})})
    message = Message(content, node_id_of("north"), "train", group_id="1")
    replies = server.grid().send_and_receive([message], timeout=20)
    begun.wait(20)

    expires = renew(loopback, site_of(files, "north"))
    retire_site(loopback.register, "north")
    wait_until(lambda: shown_by(server, "north") == expires.timestamp(), seconds=10)
    go.set()

    assert [reply.metadata.group_id for reply in replies] == ["1"]
    assert north.executed == {"1": 1}
    assert client.ended_by is None


def test_a_stream_is_changed_while_a_round_waits_for_the_site(loopback: Loopback) -> None:
    """Between two rounds a site has to be there: the next one asks only who is connected."""
    files = loopback.files(loopback.issue("north"))
    server = loopback.server()
    client = loopback.client("north", Echo(0.2), identity=IdentityFiles(*files))
    server.await_sites("north")
    grid = server.grid()
    assert one_round(grid, 1) == {"north"}

    expires = renew(loopback, site_of(files, "north"))
    own = client.metrics.certificate_expiry.labels("site")._value
    wait_until(lambda: own.get() == expires.timestamp())  # the client has seen it
    idle_until = time.monotonic() + 2.5
    while time.monotonic() < idle_until:
        assert set(server.link.connected().values()) == {"north"}
        time.sleep(0.01)
    assert client.metrics.reconnects._value.get() == 0

    assert one_round(grid, 2) == {"north"}
    assert client.metrics.reconnects._value.get() == 1
    assert shown_by(server, "north") == expires.timestamp()


def test_a_site_without_work_changes_too(loopback: Loopback) -> None:
    files = loopback.files(loopback.issue("north"))
    server = loopback.server()
    loopback.client("north", Echo(), identity=IdentityFiles(*files), renewal_seconds=0.5)
    server.await_sites("north")

    expires = renew(loopback, site_of(files, "north"))

    wait_until(lambda: shown_by(server, "north") == expires.timestamp(), seconds=10)


def test_a_site_that_is_removed_is_sent_away_whatever_it_shows(loopback: Loopback) -> None:
    files = loopback.files(loopback.issue("north"))
    server = loopback.server()
    client = loopback.client("north", Echo(), identity=IdentityFiles(*files), renewal_seconds=0)
    server.await_sites("north")
    old = load_identity(*files)
    renew(loopback, site_of(files, "north"))

    started = time.monotonic()
    remove_site(loopback.register, "north")

    assert isinstance(client.await_end(), NotRegisteredError)
    assert time.monotonic() - started < 10
    for identity in (old, load_identity(*files)):
        with pytest.raises(NotRegisteredError):
            greet(Coordinator(address=f"127.0.0.1:{loopback.port}", identity=identity))
    wait_until(lambda: not shown_sites(server))  # else its alert would fire for ever


def test_a_certificate_that_ends_in_mid_run_is_sent_away_by_name(loopback: Loopback) -> None:
    server = loopback.server()
    loopback.issue("north")
    seconds = 4.0
    start = datetime.now(UTC) - DAY + timedelta(seconds=seconds)
    ending = loopback.authority.issue_site("north", days=1, start=start)
    renew_site(loopback.register, "north", ending.fingerprint, ending.expires)
    client = loopback.client("north", Echo(), identity=loopback.identity(ending))
    server.await_sites("north")

    error = client.await_end(seconds + 10)

    assert isinstance(error, CertificateExpiredError)
    assert "the certificate of site 'north' expired on" in error.message


def server_shows(loopback: Loopback) -> str:
    return fingerprint(ssl.get_server_certificate(("127.0.0.1", loopback.port)).encode())


def test_the_servers_certificate_is_renewed_in_mid_run(loopback: Loopback) -> None:
    files = loopback.files(loopback.authority.issue_server("server", ["127.0.0.1"]))
    server = loopback.server(identity=IdentityFiles(*files))
    north = Echo(0.01)
    client = loopback.client("north", north)
    server.await_sites("north")
    grid = server.grid()
    answered = [one_round(grid, number) for number in range(5)]

    new = loopback.authority.issue_server("server", ["127.0.0.1"], days=99)
    write_secret(next_key(files[2]), new.key_pem)
    install(new.certificate_pem, files[1], files[2])
    assert server_shows(loopback) == new.fingerprint
    late = loopback.client("south", Echo())
    server.await_sites("north", "south")
    answered += [one_round(grid, number) for number in range(5, 10)]

    assert answered == 5 * [{"north"}] + 5 * [{"north", "south"}]
    assert north.executed == {str(number): 1 for number in range(10)}
    assert (client.ended_by, late.ended_by) == (None, None)
    assert client.metrics.reconnects._value.get() == 0  # whoever was there has noticed nothing
    expiry = server.metrics.certificate_expiry.labels("server")._value
    wait_until(lambda: expiry.get() == new.expires.timestamp())


def test_a_broken_certificate_on_disk_leaves_the_server_as_it_was(loopback: Loopback) -> None:
    issued = loopback.authority.issue_server("server", ["127.0.0.1"])
    files = loopback.files(issued)
    server = loopback.server(identity=IdentityFiles(*files))

    files[1].write_bytes(b"not a certificate")
    loopback.client("north", Echo())

    server.await_sites("north")
    assert server_shows(loopback) == issued.fingerprint
    assert server.metrics.certificate_expiry.labels("server")._value.get() == (
        issued.expires.timestamp()
    )


def test_two_authorities_during_a_rollover(loopback: Loopback) -> None:
    """Members of the old authority and of the new meet each other while both are in ca.pem."""
    new = Authority.create(loopback.folder / "new")
    both = loopback.authority.certificate_pem + new.certificate_pem
    old_server = loopback.files(loopback.authority.issue_server("server", ["127.0.0.1"]))
    old_server[0].write_bytes(both)
    server = loopback.server(identity=IdentityFiles(*old_server))
    issued = new.issue_site("north")
    renewed = loopback.files(issued, new)
    renewed[0].write_bytes(both)
    loopback.issue("north")
    renew_site(loopback.register, "north", issued.fingerprint, issued.expires)

    loopback.client("north", Echo(), identity=load_identity(*renewed))
    loopback.client("south", Echo())

    server.await_sites("north", "south")

"""Handshakes in memory, as strict as OpenSSL can be, with what `provision` writes."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hanse_server.provisioning.authority import Authority, Credentials
from hanse_server.provisioning.federation import provision
from hanse_server.provisioning.kit import unpack_kit
from hanse_server.provisioning.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return provision(tmp_path / "federation", host="fl.example.org", port=1, sites=["north"]).layout


@pytest.fixture
def north(layout: Layout, tmp_path: Path) -> Path:
    return unpack_kit(layout.kit("north"), tmp_path / "sites")


def context(role: ssl.Purpose, ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(role, cafile=str(ca))
    made.load_cert_chain(certificate, key)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    return made


def server_context(layout: Layout) -> ssl.SSLContext:
    files = (layout.server_ca, layout.server_certificate, layout.server_key)
    return context(ssl.Purpose.CLIENT_AUTH, *files)


def site_context(folder: Path) -> ssl.SSLContext:
    files = (folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    return context(ssl.Purpose.SERVER_AUTH, *files)


def handshake(server: ssl.SSLContext, site: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """The server's end, once both ends trust each other."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [site.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, True)]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1]


def rewrite(folder: Path, credentials: Credentials) -> None:
    (folder / "certificate.pem").write_bytes(credentials.certificate_pem)
    (folder / "key.pem").write_bytes(credentials.key_pem)


@pytest.mark.parametrize("host", ["fl.example.org", "localhost", "127.0.0.1"])
def test_server_and_site_trust_each_other(layout: Layout, north: Path, host: str) -> None:
    server = handshake(server_context(layout), site_context(north), host)

    shown = server.getpeercert()
    assert shown is not None
    assert shown["subject"] == ((("commonName", "north"),),)


def test_the_site_refuses_a_server_under_another_name(layout: Layout, north: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server_context(layout), site_context(north), "elsewhere.example.org")


def test_the_server_refuses_a_site_of_another_authority(
    layout: Layout, north: Path, tmp_path: Path
) -> None:
    rewrite(north, Authority.create(tmp_path / "other").issue_site("north"))

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_context(layout), site_context(north), "localhost")


def test_the_server_refuses_an_expired_site(layout: Layout, north: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=10)
    rewrite(north, Authority.open(layout.authority).issue_site("north", days=1, start=past))

    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(server_context(layout), site_context(north), "localhost")


def test_a_site_cannot_pose_as_the_server(layout: Layout, north: Path) -> None:
    posing = Authority.open(layout.authority).issue_site("localhost")
    layout.server_certificate.write_bytes(posing.certificate_pem)
    layout.server_key.write_bytes(posing.key_pem)

    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(server_context(layout), site_context(north), "localhost")

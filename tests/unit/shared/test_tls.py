"""Certificates, keys and authorities that do or do not belong together."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hanse.errors import CertificateError, CertificateExpiredError
from hanse.keys import read_key, write_secret
from hanse.tls import check_server_certificate, load_identity, next_key
from hanse_server.provisioning.authority import Authority, Credentials

MakeAuthority = Callable[[str], Authority]


def files(folder: Path, authority: Authority, issued: Credentials) -> dict[str, Path]:
    contents = {
        "ca": authority.certificate_pem,
        "certificate": issued.certificate_pem,
        "key": issued.key_pem,
    }
    paths = {name: folder / f"{name}.pem" for name in contents}
    for name, path in paths.items():
        write_secret(path, contents[name])
    return paths


def test_an_identity_is_who_the_certificate_says(tmp_path: Path, authority: MakeAuthority) -> None:
    ours = authority("ours")
    issued = ours.issue_site("north")

    identity = load_identity(**files(tmp_path, ours, issued))

    der = ssl.PEM_cert_to_DER_cert(issued.certificate_pem.decode())
    assert identity.name == "north"
    assert identity.fingerprint == hashlib.sha256(der).hexdigest() == issued.fingerprint
    assert identity.not_after == issued.expires
    assert issued.key_pem.decode() not in repr(identity)
    assert str(identity.key) not in repr(identity)


def test_a_key_of_another_certificate(tmp_path: Path, authority: MakeAuthority) -> None:
    ours = authority("ours")
    paths = files(tmp_path, ours, ours.issue_site("north"))
    paths["key"].write_bytes(ours.issue_site("north").key_pem)
    with pytest.raises(CertificateError, match=r"key\.pem is not the key of .*certificate\.pem"):
        load_identity(**paths)


def test_a_certificate_of_another_authority(tmp_path: Path, authority: MakeAuthority) -> None:
    paths = files(tmp_path, authority("theirs"), authority("ours").issue_site("north"))
    with pytest.raises(CertificateError, match=r"was not issued by the authority in .*ca\.pem"):
        load_identity(**paths)


@pytest.mark.parametrize(("days_ago", "message"), [(5, "expired on"), (-5, "is valid only from")])
def test_a_certificate_out_of_its_time(
    tmp_path: Path, authority: MakeAuthority, days_ago: int, message: str
) -> None:
    ours = authority("ours")
    start = datetime.now(UTC) - timedelta(days=days_ago)
    paths = files(tmp_path, ours, ours.issue_site("north", days=2, start=start))
    with pytest.raises(CertificateExpiredError, match=rf"certificate\.pem: {message} \d{{4}}-"):
        load_identity(**paths)


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
@pytest.mark.parametrize("content", [None, b"", b"not PEM"])
def test_files_that_cannot_be_read(
    tmp_path: Path, authority: MakeAuthority, name: str, content: bytes | None
) -> None:
    ours = authority("ours")
    paths = files(tmp_path, ours, ours.issue_site("north"))
    if content is None:
        paths[name].unlink()
    else:
        paths[name].write_bytes(content)
    with pytest.raises(CertificateError, match=rf"{name}\.pem"):
        load_identity(**paths)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o660, 0o777])
def test_a_key_that_others_may_touch_is_refused(
    tmp_path: Path, authority: MakeAuthority, mode: int
) -> None:
    ours = authority("ours")
    paths = files(tmp_path, ours, ours.issue_site("north"))
    paths["key"].chmod(mode)

    for use in (lambda: load_identity(**paths), lambda: read_key(paths["key"])):
        with pytest.raises(CertificateError, match=rf"key\.pem: its mode is {mode:04o}") as told:
            use()
        assert told.value.remedy == f"chmod 600 {paths['key']}"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_of_its_owner_alone_is_used(
    tmp_path: Path, authority: MakeAuthority, mode: int
) -> None:
    ours = authority("ours")
    paths = files(tmp_path, ours, ours.issue_site("north"))
    paths["key"].chmod(mode)
    assert load_identity(**paths).name == "north"


def test_a_key_that_waits_is_held_to_the_same(tmp_path: Path, authority: MakeAuthority) -> None:
    ours = authority("ours")
    paths = files(tmp_path, ours, ours.issue_site("north"))
    new = ours.issue_site("north")
    paths["certificate"].write_bytes(new.certificate_pem)
    waiting = next_key(paths["key"])
    write_secret(waiting, new.key_pem)
    assert load_identity(**paths).key == new.key_pem
    waiting.chmod(0o640)
    with pytest.raises(CertificateError, match=r"key\.pem\.next: its mode is 0640"):
        load_identity(**paths)


def test_one_of_several_authorities_will_do(tmp_path: Path, authority: MakeAuthority) -> None:
    """What ends is the authority that the certificate is of, and not the other in the file."""
    old = Authority.create(tmp_path / "old", days=10)
    new = authority("new")
    for ours in (old, new):
        issued = ours.issue_site("north", days=5)
        paths = files(tmp_path, ours, issued)
        paths["ca"].write_bytes(old.certificate_pem + new.certificate_pem)
        identity = load_identity(**paths)
        assert identity.authority_not_after == ours.certificate.not_valid_after_utc


def test_an_authority_that_has_ended_beside_one_that_has_not(
    tmp_path: Path, authority: MakeAuthority
) -> None:
    past = datetime.now(UTC) - timedelta(days=20)
    ended, new = Authority.create(tmp_path / "ended", days=10, start=past), authority("new")
    paths = files(tmp_path, new, new.issue_site("north"))
    paths["ca"].write_bytes(ended.certificate_pem + new.certificate_pem)
    assert load_identity(**paths).name == "north"

    paths = files(tmp_path, ended, ended.issue_site("north", days=5, start=past))
    with pytest.raises(CertificateExpiredError, match=r"ca\.pem: expired on"):
        load_identity(**paths)


def test_an_identity_is_checked_again_later(
    tmp_path: Path, authority: MakeAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = authority("ours")
    identity = load_identity(**files(tmp_path, ours, ours.issue_site("north", days=3)))
    identity.check_date()

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Later:
            return cls(2200, 1, 1, tzinfo=UTC)

    monkeypatch.setattr("hanse.tls.datetime", Later)
    with pytest.raises(CertificateExpiredError, match=r"certificate\.pem: expired on"):
        identity.check_date()


def test_a_servers_certificate_is_judged(authority: MakeAuthority) -> None:
    ours, theirs = authority("ours"), authority("theirs")
    good = ours.issue_server("server", ["example.org"]).certificate_pem
    check_server_certificate(good, ours.certificate_pem, "example.org:1")
    check_server_certificate(good, theirs.certificate_pem + ours.certificate_pem, "example.org:1")
    with pytest.raises(CertificateError, match=r"of example\.org:1 is of another authority"):
        check_server_certificate(good, theirs.certificate_pem, "example.org:1")


# --- malformed within: what is read only when it is asked for -------------------------------------

CURVE = bytes.fromhex("06082a8648ce3d030107")
"""The object identifier of P-256 in DER."""


def spoiled(pem: bytes, old: bytes, new: bytes) -> bytes:
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    assert old in der
    return ssl.DER_cert_to_PEM_cert(der.replace(old, new)).encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (CURVE, CURVE[:-1] + b"\x63"),  # a curve that nobody knows
        (b"\x0c\x05north", b"\x0c\x04north"),  # a name that is longer than it says
        (b"\x17\x0d", b"\x17\x0c"),  # a date likewise
        (b"\x03\x42\x00\x04", b"\x03\x42\x00\x05"),  # a key that is no point
    ],
)
def test_a_certificate_that_is_malformed_within(
    tmp_path: Path, authority: MakeAuthority, old: bytes, new: bytes
) -> None:
    ours = authority("ours")
    issued = ours.issue_site("north")
    paths = files(tmp_path, ours, issued)
    bad = spoiled(issued.certificate_pem, old, new)
    paths["certificate"].write_bytes(bad)

    with pytest.raises(CertificateError):
        load_identity(**paths)
    with pytest.raises(CertificateError):
        check_server_certificate(bad, ours.certificate_pem, "localhost:1")


def test_bytes_around_a_certificate_do_not_matter(tmp_path: Path, authority: MakeAuthority) -> None:
    ours = authority("ours")
    issued = ours.issue_site("north")
    paths = files(tmp_path, ours, issued)
    paths["certificate"].write_bytes(issued.certificate_pem + b"\xdc and a note\n")
    assert load_identity(**paths).fingerprint == issued.fingerprint


def test_a_server_that_shows_no_certificate(authority: MakeAuthority) -> None:
    with pytest.raises(CertificateError, match="the certificate of localhost:1: not a PEM"):
        check_server_certificate(b"", authority("ours").certificate_pem, "localhost:1")


def test_a_key_on_a_curve_that_nobody_knows(tmp_path: Path, authority: MakeAuthority) -> None:
    ours = authority("ours")
    issued = ours.issue_site("north")
    paths = files(tmp_path, ours, issued)
    lines = issued.key_pem.decode().splitlines()
    der = base64.b64decode("".join(lines[1:-1])).replace(CURVE, CURVE[:-1] + b"\x63")
    pem = f"{lines[0]}\n{base64.encodebytes(der).decode()}{lines[-1]}\n"
    paths["key"].write_text(pem)
    with pytest.raises(CertificateError, match="not an unencrypted PEM private key"):
        load_identity(**paths)
    with pytest.raises(CertificateError, match="not an unencrypted PEM private key"):
        read_key(paths["key"])

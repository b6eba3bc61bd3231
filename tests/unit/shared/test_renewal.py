"""Certificates and keys that are renewed while somebody uses them, and who may ask for it."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hanse.errors import CertificateError
from hanse.keys import key_pem, new_key, parse_key, write_secret
from hanse.renewal import IdentityFiles, install, prove, prover, settle_key
from hanse.tls import load_identity, next_key
from hanse_client.request import signing_request
from hanse_server.provisioning.authority import Authority, Credentials

MakeAuthority = Callable[[str], Authority]
Files = tuple[Path, Path, Path]


@pytest.fixture
def ours(authority: MakeAuthority) -> Authority:
    return authority("ours")


@pytest.fixture
def files(tmp_path: Path, ours: Authority) -> Files:
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    ca.write_bytes(ours.certificate_pem)
    issued = ours.issue_site("north")
    certificate.write_bytes(issued.certificate_pem)
    write_secret(key, issued.key_pem)
    return ca, certificate, key


class Cut(BaseException):
    """A crash."""


# --- the files -------------------------------------------------------------------------------


def test_what_is_renewed_is_taken_up(files: Files, ours: Authority) -> None:
    identities = IdentityFiles(*files)
    before = identities.current()
    assert identities.current() is before

    new = ours.issue_site("north")
    write_secret(next_key(files[2]), new.key_pem)
    install(new.certificate_pem, files[1], files[2])

    assert identities.current().fingerprint == new.fingerprint != before.fingerprint
    assert files[2].read_bytes() == new.key_pem
    assert files[2].stat().st_mode & 0o777 == 0o600
    assert not next_key(files[2]).exists()


@pytest.mark.parametrize("step", ["write_secret", "write_file", "replace"])
def test_at_every_step_of_a_renewal_the_files_fit(
    files: Files, ours: Authority, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before the certificate is written the old identity holds, from then on the new one."""
    _, certificate, key = files
    old, new = load_identity(*files), ours.issue_site("north")
    write_secret(next_key(key), new.key_pem)
    expected = old.fingerprint
    if step != "write_secret":

        def cut(*_: object) -> None:
            raise Cut

        where = "write_file" if step == "write_file" else "settle_key"
        with monkeypatch.context() as patched:
            patched.setattr(f"hanse.renewal.{where}", cut)
            with pytest.raises(Cut):
                install(new.certificate_pem, certificate, key)
        expected = old.fingerprint if step == "write_file" else new.fingerprint

    assert load_identity(*files).fingerprint == expected

    settle_key(certificate, key)  # as the next renewal does
    assert load_identity(*files).fingerprint == expected
    assert next_key(key).exists() == (expected == old.fingerprint)


def test_a_renewal_between_two_reads_is_read_again(
    files: Files, ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ours.issue_site("north")
    reads: list[Path] = []
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        content = real(path)
        if path == files[1] and not reads:  # the certificate was read, the key not yet
            reads.append(path)
            write_secret(next_key(files[2]), new.key_pem)
            install(new.certificate_pem, files[1], files[2])
        return content

    monkeypatch.setattr(Path, "read_bytes", read_bytes)

    assert load_identity(*files).fingerprint == new.fingerprint


@pytest.mark.parametrize("broken", ["certificate", "key", "mode", "gone", "ca"])
def test_a_mistake_in_the_files_changes_nothing(
    files: Files, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    identities = IdentityFiles(*files)
    before = identities.current()
    ca, certificate, key = files
    good = {path: path.read_bytes() for path in files}
    if broken == "certificate":
        certificate.write_bytes(b"nothing")
    elif broken == "key":
        key.write_bytes(key_pem(new_key()))
    elif broken == "mode":
        key.chmod(0o644)
    elif broken == "gone":
        certificate.unlink()
    else:
        ca.write_bytes(b"")

    with caplog.at_level(logging.ERROR):
        assert identities.current() is before
        assert identities.current() is before
    assert len(caplog.records) == 1  # told once

    for path, content in good.items():
        path.write_bytes(content)
    key.chmod(0o600)
    assert identities.current().fingerprint == before.fingerprint


def test_files_that_are_unfit_at_the_start_are_refused(files: Files) -> None:
    files[2].chmod(0o604)
    with pytest.raises(CertificateError, match="its mode is 0604"):
        IdentityFiles(*files)


# --- who asks for a renewal --------------------------------------------------------------------


def test_the_holder_of_the_present_key_proves_a_request(ours: Authority) -> None:
    present = ours.issue_site("north")
    request = signing_request("north", new_key())
    proven = prove(request, present.certificate_pem, parse_key(Path("k"), present.key_pem))

    found = prover(proven)

    assert found is not None
    assert found == _certificate(present)
    issued = ours.sign_request(proven, "north")  # it is still a signing request
    assert issued.expires - present.expires < timedelta(minutes=1)


def test_a_request_without_a_proof_is_nobodys(ours: Authority) -> None:
    assert prover(signing_request("north", new_key())) is None


def test_a_proof_is_of_one_request_and_one_key(ours: Authority) -> None:
    present, other = ours.issue_site("north"), ours.issue_site("north")
    key = parse_key(Path("k"), present.key_pem)
    mine, theirs = (signing_request("north", new_key()) for _ in range(2))
    proven = prove(mine, present.certificate_pem, key)
    forged = {
        "of another key": prove(mine, other.certificate_pem, key),
        "moved to another request": theirs + proven.removeprefix(mine),
        "cut": proven.replace(b"-----BEGIN HANSE PROOF-----\n", b"-----BEGIN HANSE PROOF-----\nAA"),
        "no certificate": mine + proven[proven.index(b"-----BEGIN HANSE") :],
    }
    for request in forged.values():
        with pytest.raises(CertificateError, match="not signed by the key"):
            prover(request)


def test_a_signature_for_another_purpose_proves_nothing(ours: Authority) -> None:
    """The key signs in secure rounds too: no such signature may be passed off as a proof."""
    present = ours.issue_site("north")
    request = signing_request("north", new_key())
    der = x509.load_pem_x509_csr(request).public_bytes(serialization.Encoding.DER)
    signature = parse_key(Path("k"), present.key_pem).sign(der, ec.ECDSA(hashes.SHA256()))
    block = base64.encodebytes(signature)
    passed_off = request + present.certificate_pem + b"-----BEGIN HANSE PROOF-----\n" + block
    with pytest.raises(CertificateError, match="not signed by the key"):
        prover(passed_off + b"-----END HANSE PROOF-----\n")


def _certificate(issued: Credentials) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate_pem)

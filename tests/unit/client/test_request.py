from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hanse.errors import CertificateError
from hanse.keys import key_fingerprint, read_key, write_secret
from hanse_client.request import make_request


def test_a_request_proves_the_key_that_stays(tmp_path: Path) -> None:
    made = make_request("north", tmp_path / "new")

    request = x509.load_pem_x509_csr(made.request.read_bytes())
    key = read_key(made.key)
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=north"
    assert request.public_key() == key.public_key()
    assert made.key_fingerprint == key_fingerprint(key.public_key())
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in made.request.read_bytes()


def test_making_it_again_keeps_the_key(tmp_path: Path) -> None:
    first = make_request("north", tmp_path)
    before = first.key.read_bytes()

    second = make_request("north", tmp_path)

    assert second.key.read_bytes() == before
    assert second.key_fingerprint == first.key_fingerprint


def test_two_keys_differ(tmp_path: Path) -> None:
    one, two = make_request("a", tmp_path / "1"), make_request("a", tmp_path / "2")

    assert one.key_fingerprint != two.key_fingerprint


def test_what_is_no_site_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="site name 'North'"):
        make_request("North", tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CertificateError, match="cannot be written: "):
        make_request("north", tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"nothing"])
def test_a_broken_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    write_secret(tmp_path / "key.pem", content)

    with pytest.raises(CertificateError, match=r"key\.pem: not an unencrypted PEM private key"):
        make_request("north", tmp_path)

    assert (tmp_path / "key.pem").read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_secret(tmp_path / "key.pem", pem)

    with pytest.raises(CertificateError, match="P-256"):
        make_request("north", tmp_path)

from __future__ import annotations

import base64
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hanse.errors import CertificateError, CertificateExpiredError
from hanse_server.provisioning.authority import Authority, Credentials, Issued


def certificate_of(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate_pem)


def request_pem(
    name: str,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    asked = x509.SubjectAlternativeName([x509.DNSName("somebody-else")])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(asked, critical=False)
        .sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


def test_an_authority_is_opened_as_it_was_created(tmp_path: Path) -> None:
    created = Authority.create(tmp_path / "authority")

    opened = Authority.open(tmp_path / "authority")

    assert opened.certificate == created.certificate
    lasts = opened.certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=3649) < lasts <= timedelta(days=3650)
    constraints = opened.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_the_authoritys_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    Authority.create(tmp_path / "authority")

    assert stat.S_IMODE((tmp_path / "authority" / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "authority").stat().st_mode) == 0o700


def test_an_existing_authority_is_never_overwritten(tmp_path: Path) -> None:
    created = Authority.create(tmp_path / "authority")

    with pytest.raises(CertificateError, match="not empty"):
        Authority.create(tmp_path / "authority")

    assert Authority.open(tmp_path / "authority").certificate == created.certificate


def test_a_site_is_named_in_subject_and_alternative_name(authority: Authority) -> None:
    certificate = certificate_of(authority.issue_site("north-clinic"))

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["north-clinic"]
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["north-clinic"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca
    assert authority.has_signed(certificate)


def test_the_key_issued_is_the_certificates(authority: Authority) -> None:
    issued = authority.issue_site("a")

    key = serialization.load_pem_private_key(issued.key_pem, password=None)
    assert key.public_key() == certificate_of(issued).public_key()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"


def test_a_fingerprint_is_the_sha256_of_the_der_form(authority: Authority) -> None:
    issued = authority.issue_site("a")

    assert issued.fingerprint == certificate_of(issued).fingerprint(hashes.SHA256()).hex()


def test_a_server_is_good_under_each_of_its_hosts(authority: Authority) -> None:
    hosts = ["localhost", "127.0.0.1", "fl.example.org", "fl.example.org", "::1"]
    certificate = certificate_of(authority.issue_server("server", hosts))

    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["localhost", "fl.example.org"]
    addresses = [str(address) for address in san.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("host", ["", "https://a.org", "a.org:8443", "a b", "-a.org", "a..org"])
def test_what_is_no_host_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(CertificateError, match="neither a DNS name nor an IP address"):
        authority.issue_server("server", [host])


@pytest.mark.parametrize("name", ["", "Nord", "a_b", "-a", "a-", "a.b", "a" * 64, "a\n"])
def test_what_is_no_site_name_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(CertificateError, match="site name"):
        authority.issue_site(name)


def test_a_leaf_lasts_the_days_asked_for(authority: Authority) -> None:
    issued = authority.issue_site("a", days=30)

    assert timedelta(days=29) < issued.expires - datetime.now(UTC) <= timedelta(days=30)


@pytest.mark.parametrize("days", [0, -1, 36501, 10**9])
def test_days_out_of_bounds_are_refused(authority: Authority, days: int) -> None:
    with pytest.raises(CertificateError, match=f"days={days}: expected 1 to"):
        authority.issue_site("a", days=days)


def test_no_leaf_outlives_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", days=100)

    with pytest.raises(CertificateError, match="longer than the authority"):
        authority.issue_site("a", days=101)


def test_a_request_is_signed_without_its_key(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    issued = authority.sign_request(request_pem("a", key), "a")

    assert not isinstance(issued, Credentials)
    certificate = certificate_of(issued)
    assert certificate.public_key() == key.public_key()
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["a"], "the request's own wishes are ignored"


def test_a_request_for_another_name_is_refused(authority: Authority) -> None:
    with pytest.raises(CertificateError, match="for b, and not for 'a'"):
        authority.sign_request(request_pem("b"), "a")


def test_a_request_that_its_key_did_not_sign_is_refused(authority: Authority) -> None:
    der = bytearray(
        x509.load_pem_x509_csr(request_pem("a")).public_bytes(serialization.Encoding.DER)
    )
    at = der.index(b"somebody-else")
    der[at : at + 4] = b"SOME"
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)

    with pytest.raises(CertificateError, match="not signed by the key in it"):
        authority.sign_request(forged, "a")


@pytest.mark.parametrize(
    "make_key",
    [
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        lambda: ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["rsa", "p384"],
)
def test_a_request_with_another_kind_of_key_is_refused(
    authority: Authority, make_key: Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]
) -> None:
    with pytest.raises(CertificateError, match="another kind than ECDSA P-256"):
        authority.sign_request(request_pem("a", make_key()), "a")


@pytest.mark.parametrize("data", [b"", b"hello", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_what_is_no_request_is_refused(authority: Authority, data: bytes) -> None:
    with pytest.raises(CertificateError, match="not a signing request"):
        authority.sign_request(data, "a")


def test_another_authoritys_certificate_is_not_taken_for_its_own(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other")

    assert not authority.has_signed(certificate_of(other.issue_site("a")))


def test_an_expired_authority_is_not_opened(tmp_path: Path) -> None:
    Authority.create(tmp_path / "authority", days=1, start=datetime.now(UTC) - timedelta(days=2))

    with pytest.raises(CertificateExpiredError, match="the authority ended on"):
        Authority.open(tmp_path / "authority")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    Authority.create(tmp_path / "authority")
    (tmp_path / "authority" / "ca.key").unlink()

    with pytest.raises(CertificateError, match=r"ca\.key: cannot be read: No such file"):
        Authority.open(tmp_path / "authority")


def test_two_halves_of_different_authorities_are_refused(tmp_path: Path) -> None:
    Authority.create(tmp_path / "authority")
    Authority.create(tmp_path / "other")
    (tmp_path / "other" / "ca.key").replace(tmp_path / "authority" / "ca.key")

    with pytest.raises(CertificateError, match=r"ca\.key is not the key of ca\.pem"):
        Authority.open(tmp_path / "authority")


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
def test_a_malformed_file_is_named(tmp_path: Path, name: str) -> None:
    Authority.create(tmp_path / "authority")
    (tmp_path / "authority" / name).write_text("nothing")

    with pytest.raises(CertificateError, match=name):
        Authority.open(tmp_path / "authority")


def test_a_request_of_a_version_that_nobody_knows_is_refused(authority: Authority) -> None:
    pem = request_pem("north", ec.generate_private_key(ec.SECP256R1()))
    der = x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)
    odd = der.replace(b"\x02\x01\x00", b"\x02\x01\x40", 1)
    text = base64.encodebytes(odd).decode()
    label = "CERTIFICATE REQUEST"
    with pytest.raises(CertificateError, match="is not a signing request"):
        authority.sign_request(
            f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode(), "north"
        )


@pytest.mark.parametrize(
    ("old", "new"), [(b"\x17\x0d", b"\x17\x0c"), (b"\x55\x1d\x0f", b"\x55\x1d\x13")]
)
def test_a_certificate_that_is_malformed_within_is_named(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    Authority.create(tmp_path / "authority")
    path = tmp_path / "authority" / "ca.pem"
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    assert old in der
    path.write_text(ssl.DER_cert_to_PEM_cert(der.replace(old, new)))
    with pytest.raises(CertificateError, match=r"ca\.pem"):
        Authority.open(tmp_path / "authority")

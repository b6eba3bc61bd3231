"""Who this machine is on the link: a certificate with its key, and the authority it trusts."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from hanse.errors import CertificateError, CertificateExpiredError
from hanse.keys import MALFORMED, read_secret


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One end of a mutual TLS connection, checked to fit together.

    Attributes:
        ca, certificate, key: PEM, as the files hold them.
        name: the certificate's common name.
        fingerprint: SHA-256 of the certificate's DER form, as 64 hex digits.
        not_after, authority_not_after: when the certificate ends, and the authority that
            issued it.
        source: the certificate's file, for messages.
    """

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    name: str
    fingerprint: str
    not_after: datetime
    authority_not_after: datetime
    source: Path

    def current(self) -> Identity:
        """Itself: an identity that was passed in as it is does not change."""
        return self

    def check_date(self) -> None:
        """Refuse a certificate whose time is over.

        Raises:
            CertificateExpiredError: naming file and date.
        """
        _check_dates(self.source, x509.load_pem_x509_certificate(self.certificate))


class IdentitySource(Protocol):
    """Tells who this machine is now: an :class:`Identity`, or files that may be renewed."""

    def current(self) -> Identity:
        """The identity to meet others under from now on."""


def next_key(key: Path) -> Path:
    """Where the key of a certificate that is yet to come waits, beside the one in use."""
    return key.with_name(f"{key.name}.next")


def load_identity(ca: Path, certificate: Path, key: Path) -> Identity:
    """Read a certificate, its key and its authority, and check that they belong together.

    Of the key and :func:`next_key` the one is taken that is the certificate's: so the renewal
    of both takes effect with the certificate alone. ``ca`` may hold several authorities.

    Raises:
        CertificateError: if a file cannot be read, others than its owner may use the key, it is
            not the certificate's, or the certificate is of none of these authorities.
        CertificateExpiredError: if the certificate or its authority is not valid at this time.
    """
    pem = _read(certificate)
    try:
        return _load(ca, certificate, key, pem)
    except CertificateError:
        renewed = _read(certificate)
        if renewed == pem:
            raise
    return _load(ca, certificate, key, renewed)  # it was renewed between two reads


def _load(ca: Path, certificate: Path, key: Path, certificate_pem: bytes) -> Identity:
    ca_pem = _read(ca)
    authorities = _certificates(ca, ca_pem)
    leaf = _certificates(certificate, certificate_pem)[0]
    key_pem = _key_of(leaf, key)
    if key_pem is None:
        raise CertificateError(f"{key} is not the key of {certificate}")
    authority = next((each for each in authorities if issued_by(leaf, each)), None)
    if authority is None:
        raise CertificateError(
            f"{certificate} was not issued by the authority in {ca}",
            remedy="Use the three files of one kit together.",
        )
    for path, held in ((ca, authority), (certificate, leaf)):
        _check_dates(path, held)
    return Identity(
        ca=ca_pem,
        certificate=certificate_pem,
        key=key_pem,
        name=common_name(leaf),
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
        not_after=leaf.not_valid_after_utc,
        authority_not_after=authority.not_valid_after_utc,
        source=certificate,
    )


def read_leaf(path: Path) -> x509.Certificate:
    """The certificate in a PEM file; the first, where others follow.

    Raises:
        CertificateError: if there is none.
    """
    return _certificates(path, _read(path))[0]


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a certificate's DER form, as 64 hex digits."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).hexdigest()


def common_name(certificate: x509.Certificate) -> str:
    """The certificate's common name; empty where it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def check_server_certificate(pem: bytes, ca: bytes, address: str) -> None:
    """Say why a server's certificate is not trusted, if it is the certificate.

    Raises:
        CertificateError: if it is of another authority than those in ``ca``.
        CertificateExpiredError: if it is not valid at this time.
    """
    certificate = _certificates(Path(f"the certificate of {address}"), pem)[0]
    if not any(issued_by(certificate, each) for each in x509.load_pem_x509_certificates(ca)):
        raise CertificateError(
            f"the certificate of {address} is of another authority than this site's",
            remedy="Check the coordinator's address; if it is right, ask the operator for a new "
            "kit.",
        )
    _check_dates(Path(f"the certificate of {address}"), certificate)


def _key_of(leaf: x509.Certificate, key: Path) -> bytes | None:
    """The private key of ``leaf``: that in ``key``, or the one that waits beside it."""
    for path in (key, next_key(key)):
        if path == key or path.exists():
            pem = read_secret(path)
            if _public_key(path, pem) == _public_bytes(leaf):
                return pem
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as unreadable:
        raise CertificateError(f"{path}: cannot be read: {unreadable.strerror}") from unreadable


def _certificates(path: Path, pem: bytes) -> Sequence[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:  # these are parsed only when they are asked for
            common_name(certificate)
            _public_bytes(certificate)
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except MALFORMED as malformed:
        raise CertificateError(f"{path}: not a PEM certificate") from malformed
    return found


def _public_key(path: Path, pem: bytes) -> bytes:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
        return key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except MALFORMED as malformed:  # TypeError: it is encrypted
        raise CertificateError(f"{path}: not an unencrypted PEM private key") from malformed


def _public_bytes(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _check_dates(source: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise CertificateExpiredError(
            f"{source}: expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )
    if now < certificate.not_valid_before_utc:
        raise CertificateExpiredError(
            f"{source}: is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )

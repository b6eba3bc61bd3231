"""X.509 as this project uses it: ECDSA P-256, one authority, leaves for one purpose each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hanse.errors import CertificateError
from hanse.keys import MALFORMED, PrivateKey

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH

_CLOCKS_DIFFER = timedelta(hours=1)  # a new certificate is valid where the clock is behind


@dataclass(frozen=True, kw_only=True)
class Period:
    """When a certificate is valid, in UTC."""

    begin: datetime
    end: datetime


def authority_certificate(name: str, key: PrivateKey, period: Period) -> x509.Certificate:
    """The certificate with which an authority vouches for itself; it may sign leaves only."""
    subject = _subject(name)
    return (
        _builder(subject, subject, key.public_key(), period)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """What a certificate says of its holder.

    Attributes:
        name: the common name.
        alternatives: the names that the other end checks.
        purpose: :data:`CLIENT` or :data:`SERVER`.
    """

    name: str
    alternatives: Sequence[x509.GeneralName]
    purpose: x509.ObjectIdentifier
    public_key: ec.EllipticCurvePublicKey
    period: Period


def leaf_certificate(
    leaf: Leaf, authority: x509.Certificate, authority_key: PrivateKey
) -> x509.Certificate:
    """The certificate in which the authority says ``leaf``."""
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(_subject(leaf.name), authority.subject, leaf.public_key, leaf.period)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([leaf.purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(leaf.alternatives), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file.

    Raises:
        CertificateError: if there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        _ = certificate.public_key(), certificate.extensions, certificate.not_valid_after_utc
    except OSError as unreadable:
        raise CertificateError(f"{path}: cannot be read: {unreadable.strerror}") from unreadable
    except MALFORMED as malformed:
        raise CertificateError(f"{path}: not a PEM certificate") from malformed
    return certificate


def requested_key(request_pem: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request for ``name``; what else it asks for is ignored.

    Raises:
        CertificateError: if the request is malformed, is not signed by its own key, is for
            another name, or its key is of another kind than P-256.
    """
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key = request.public_key()
        names = [str(part.value) for part in request.subject]
        proven = request.is_signature_valid
    except (*MALFORMED, InvalidSignature) as malformed:
        raise CertificateError(f"the request of {name!r} is not a signing request") from malformed
    if not proven:
        raise CertificateError(f"the request of {name!r} is not signed by the key in it")
    if names != [name]:
        raise CertificateError(
            f"the request is for {', '.join(names) or 'nobody'}, and not for {name!r}",
            remedy="Give the name that the site's administrator made the request for.",
        )
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(
            f"the request of {name!r} has a key of another kind than ECDSA P-256",
            remedy="Ask the site's administrator to make the request with hanse.",
        )
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, period: Period
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(period.begin - _CLOCKS_DIFFER)
        .not_valid_after(period.end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])

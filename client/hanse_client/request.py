"""A signing request, made at the site: the private key never leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from hanse.errors import CertificateError
from hanse.keys import (
    PrivateKey,
    check_site_name,
    key_fingerprint,
    key_pem,
    new_key,
    read_key,
    write_secret,
)


@dataclass(frozen=True, kw_only=True)
class SigningRequest:
    """What the site's administrator sends to the operator, and what stays.

    Attributes:
        key: the private key; it stays where it is.
        request: the file to send.
        key_fingerprint: of the public key; the operator sees the same when signing, so that
            the two can compare it over another channel.
    """

    name: str
    key: Path
    request: Path
    key_fingerprint: str


def make_request(name: str, folder: Path) -> SigningRequest:
    """Write ``key.pem`` (mode 0600) and ``request.csr`` into ``folder``.

    A key that is there already is kept, so that a request which got lost can be made again.

    Raises:
        CertificateError: if ``name`` cannot be a site's, or the folder cannot be written.
    """
    check_site_name(name)
    key_path, request_path = folder / "key.pem", folder / "request.csr"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if key_path.exists():
            key = read_key(key_path)
        else:
            key = new_key()
            write_secret(key_path, key_pem(key))
        request_path.write_bytes(signing_request(name, key))
    except OSError as error:
        raise CertificateError(
            f"{folder}: cannot be written: {error.strerror}",
            remedy="Name a folder that you may write to.",
        ) from error
    return SigningRequest(
        name=name,
        key=key_path,
        request=request_path,
        key_fingerprint=key_fingerprint(key.public_key()),
    )


def signing_request(name: str, key: PrivateKey) -> bytes:
    """A request in PEM for a certificate of ``key`` that calls its holder ``name``."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

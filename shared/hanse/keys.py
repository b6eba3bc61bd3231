"""Private keys of a federation: how they are made, written and read back, on either side."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hanse.durable import sync_folder
from hanse.errors import CertificateError
from hanse.identity import SITE_NAME

PrivateKey = ec.EllipticCurvePrivateKey

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.ExtensionNotFound,
)
"""What cryptography raises on keys, certificates and requests that it cannot make sense of."""


def new_key() -> PrivateKey:
    """A fresh ECDSA key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """The key as unencrypted PKCS #8 in PEM: services start without a person who types."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def read_key(path: Path) -> PrivateKey:
    """The private key in a PEM file.

    Raises:
        CertificateError: if there is none that can be used, or others may use it too.
    """
    return parse_key(path, read_secret(path))


def parse_key(path: Path, pem: bytes) -> PrivateKey:
    """The private key in what ``path`` holds.

    Raises:
        CertificateError: if there is none that can be used.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except MALFORMED as malformed:  # TypeError: it is encrypted
        raise CertificateError(f"{path}: not an unencrypted PEM private key") from malformed
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(f"{path}: not an ECDSA key on P-256")
    return key


def read_secret(path: Path) -> bytes:
    """The content of a file that nobody but its owner may touch.

    Raises:
        CertificateError: if it cannot be read, or its mode gives a right to group or others.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read()
    except OSError as unreadable:
        raise CertificateError(f"{path}: cannot be read: {unreadable.strerror}") from unreadable
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CertificateError(
            f"{path}: its mode is {mode:04o}, so that others on this machine could use the key; "
            "expected 0600 or less",
            remedy=f"chmod 600 {path}",
        )
    return data


def write_secret(path: Path, data: bytes) -> None:
    """Write ``data`` so that it is whole or absent, and at no moment readable by others (0600)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def key_fingerprint(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the public key as 64 hex digits: what two people compare over the telephone."""
    data = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(data).hexdigest()


def check_site_name(name: str) -> None:
    """Refuse what cannot stand in a site's certificate.

    Raises:
        CertificateError: if ``name`` is not a DNS label in lower case.
    """
    if not re.fullmatch(SITE_NAME, name):
        raise CertificateError(
            f"site name {name!r}: expected 1 to 63 of a-z, 0-9 and '-', no '-' at either end",
            remedy="Choose another name for the site.",
        )

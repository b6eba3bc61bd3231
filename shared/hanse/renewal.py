"""A certificate and its key are renewed while somebody uses them."""

from __future__ import annotations

import base64
import logging
import re
import threading
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hanse.durable import sync_folder, write_file
from hanse.errors import CertificateError
from hanse.keys import PrivateKey, read_key
from hanse.tls import Identity, load_identity, next_key, read_leaf

log = logging.getLogger("hanse.tls")

_PURPOSE = b"hanse renewal of a certificate\0"
_PROOF = re.compile(rb"-----BEGIN HANSE PROOF-----\s+([A-Za-z0-9+/=\s]+?)-----END HANSE PROOF-----")


class IdentityFiles:
    """An identity as its files hold it now; may be asked from several threads.

    A change that leaves the files unfit is reported in the log, and the last fit state holds.

    Raises:
        CertificateError: if the files are unfit at the start.
    """

    def __init__(self, ca: Path, certificate: Path, key: Path) -> None:
        self._paths = (ca, certificate, key)
        self._lock = threading.Lock()
        self._version = self._seen()
        self._identity = load_identity(*self._paths)

    def current(self) -> Identity:
        """The identity; the same object until a file has changed."""
        with self._lock:
            version = self._seen()
            if version != self._version:
                self._version = version
                self._reload()
            return self._identity

    def _reload(self) -> None:
        try:
            renewed = load_identity(*self._paths)
        except CertificateError as unfit:
            log.error("the certificate in use stays the one of before: %s", unfit)  # noqa: TRY400
            return
        if renewed.fingerprint != self._identity.fingerprint:
            log.info(
                "%s: a new certificate, valid until %s",
                renewed.source,
                renewed.not_after.strftime("%Y-%m-%d"),
            )
        self._identity = renewed

    def _seen(self) -> tuple[tuple[int, int, int, int] | None, ...]:
        ca, certificate, key = self._paths
        return tuple(map(_version, (ca, certificate, key, next_key(key))))


def install(certificate_pem: bytes, certificate: Path, key: Path) -> None:
    """Put a certificate in the place of ``certificate``, and its key, if that waits, of ``key``.

    The certificate takes effect whole or not at all: :func:`hanse.tls.load_identity` finds its
    key before the second step and after it.
    """
    write_file(certificate, certificate_pem)
    settle_key(certificate, key)


def settle_key(certificate: Path, key: Path) -> None:
    """Give the key of ``certificate`` its usual name, if it still waits beside the one of before:
    a crash may have come between the two steps of a renewal.
    """
    waiting = next_key(key)
    if waiting.exists() and _is_key_of(waiting, certificate):
        waiting.replace(key)
        sync_folder(key.parent)


def prove(request_pem: bytes, certificate_pem: bytes, key: PrivateKey) -> bytes:
    """A signing request together with the proof that the holder of ``key`` has made it.

    Args:
        certificate_pem: the certificate in use, whose key ``key`` is.
    """
    signature = key.sign(_proven(request_pem), ec.ECDSA(hashes.SHA256()))
    proof = base64.encodebytes(signature)
    block = b"-----BEGIN HANSE PROOF-----\n" + proof + b"-----END HANSE PROOF-----\n"
    return request_pem + certificate_pem + block


def prover(request_pem: bytes) -> x509.Certificate | None:
    """The certificate whose holder has made a signing request; None if nobody proves that.

    Raises:
        CertificateError: if the proof is malformed or forged.
    """
    found = _PROOF.search(request_pem)
    if found is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificates(request_pem)[0]
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise CertificateError("the request is signed by a key of another kind than ECDSA")
        signature = base64.b64decode(found[1])
        key.verify(signature, _proven(request_pem), ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature) as forged:
        raise CertificateError(
            "the request is not signed by the key of the certificate that it shows",
            remedy="Make it again with `hanse client renew`.",
        ) from forged
    return certificate


def _proven(request_pem: bytes) -> bytes:
    request = x509.load_pem_x509_csr(request_pem)
    return _PURPOSE + request.public_bytes(serialization.Encoding.DER)


def _is_key_of(key: Path, certificate: Path) -> bool:
    return read_key(key).public_key() == read_leaf(certificate).public_key()


def _version(path: Path) -> tuple[int, int, int, int] | None:
    """What changes whenever a file or its mode does; None while there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_mode

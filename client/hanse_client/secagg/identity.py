"""Who a site is to the other sites of a secure round, and how they find out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hanse.errors import PeerError
from hanse.identity import SITE_NAME
from hanse.keys import MALFORMED, PrivateKey, key_fingerprint, parse_key
from hanse.tls import common_name, issued_by, load_identity

from hanse_client.site import Site, check_linked

PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True, kw_only=True)
class Signer:
    """What a site signs with.

    Attributes:
        credential: what proves the key to the others: the site's certificate in DER.
    """

    name: str
    credential: bytes
    key: PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """An ECDSA signature with SHA-256."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


class Verifier(Protocol):
    """Tells which key is a site's."""

    def key_of(self, name: str, credential: bytes) -> PublicKey:
        """The key that ``credential`` proves to be that of the site called ``name``.

        Raises:
            PeerError: if it proves no such thing.
        """


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A site's own identity and how it knows the others'."""

    signer: Signer
    verifier: Verifier


OpenIdentity = Callable[[], Identity]
"""Opened anew for each session, so that a renewed certificate is taken up."""


class CertificateVerifier:
    """Knows sites by certificates of the federation's authority, and by pins where there are any.

    Whoever runs the authority can issue certificates for sites that do not exist. Pins do not
    depend on it: with pins, only the sites that they name take part, each with its pinned key.

    Args:
        authorities: certificates in PEM.
        pins: SHA-256 of a site's public key, as 64 hex digits, by its name; empty for none.
    """

    def __init__(self, authorities: bytes, pins: Mapping[str, str]) -> None:
        self._authorities = x509.load_pem_x509_certificates(authorities)
        self._pins = pins

    def key_of(self, name: str, credential: bytes) -> PublicKey:
        """The public key of a valid certificate for ``name``."""
        try:
            certificate = x509.load_der_x509_certificate(credential)
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            key = certificate.public_key()
            shown = common_name(certificate)
        except MALFORMED as malformed:
            raise PeerError(f"site {name!r} shows no site's certificate") from malformed
        if not re.fullmatch(SITE_NAME, name) or shown != name:
            raise PeerError(f"site {name!r} shows the certificate of {shown!r}")
        if not any(issued_by(certificate, authority) for authority in self._authorities):
            raise PeerError(f"the certificate of {name!r} is of another authority than this site's")
        if not certificate.not_valid_before_utc <= _now() <= certificate.not_valid_after_utc:
            raise PeerError(f"the certificate of {name!r} is not valid at this time")
        # The server's own certificate is of the same authority, and is no site's.
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage or not isinstance(key, PublicKey):
            raise PeerError(f"the certificate of {name!r} is not a site's")
        self._check_pin(name, key)
        return key

    def _check_pin(self, name: str, key: PublicKey) -> None:
        if not self._pins:
            return
        if name not in self._pins:
            raise PeerError(
                f"site {name!r} is not among this site's peers "
                "(policy.secure_aggregation.peers in site.toml)"
            )
        if self._pins[name] != key_fingerprint(key):
            raise PeerError(
                f"the key of {name!r} has the fingerprint {key_fingerprint(key)}, and another is "
                "pinned (policy.secure_aggregation.peers in site.toml)"
            )


def verify(key: PublicKey, signature: bytes, data: bytes, *, name: str) -> None:
    """Check a signature.

    Raises:
        PeerError: if it is not that of ``key`` over ``data``.
    """
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as forged:
        raise PeerError(f"a signature of site {name!r} is forged") from forged


def certified(site: Site) -> OpenIdentity:
    """The identity of a real site: its TLS certificate and key, its authority, its pins."""

    def open_identity() -> Identity:
        check_linked(site)
        tls = load_identity(site.tls.ca, site.tls.certificate, site.tls.key)
        leaf = x509.load_pem_x509_certificate(tls.certificate)
        signer = Signer(
            name=tls.name,
            credential=leaf.public_bytes(serialization.Encoding.DER),
            key=parse_key(site.tls.key, tls.key),
        )
        pins = site.policy.secure_aggregation.peers
        own = {tls.name: key_fingerprint(signer.key.public_key())}
        return Identity(
            signer=signer,
            verifier=CertificateVerifier(tls.ca, {**pins, **own} if pins else {}),
        )

    return open_identity


def pin_of(open_identity: OpenIdentity) -> tuple[str, str]:
    """A site's name and the fingerprint of its public key, for others to pin.

    Raises:
        CertificateError: if certificate, key and authority do not fit together.
    """
    signer = open_identity().signer
    return signer.name, key_fingerprint(signer.key.public_key())


class SimulatedVerifier:
    """Knows simulated sites, whose keys follow from their names: nobody is kept from anything."""

    def key_of(self, name: str, credential: bytes) -> PublicKey:
        """The key of a simulated site."""
        return _simulated_key(name).public_key()


def simulated(name: str) -> OpenIdentity:
    """The identity of a simulated site, the same in every process."""

    def identity() -> Identity:
        signer = Signer(name=name, credential=b"simulated", key=_simulated_key(name))
        return Identity(signer=signer, verifier=SimulatedVerifier())

    return identity


def _simulated_key(name: str) -> PrivateKey:
    digest = hashlib.sha256(b"hanse simulated site " + name.encode()).digest()
    return ec.derive_private_key(1 + int.from_bytes(digest[:31], "big"), ec.SECP256R1())


def _now() -> datetime:
    return datetime.now(UTC)

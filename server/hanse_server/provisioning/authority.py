"""The federation's certificate authority: it signs the server's and the sites' certificates."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hanse.errors import CertificateError, CertificateExpiredError
from hanse.keys import (
    PrivateKey,
    check_site_name,
    key_fingerprint,
    key_pem,
    new_key,
    read_key,
    write_secret,
)

from hanse_server.durable import new_folder
from hanse_server.provisioning.certificates import (
    CLIENT,
    SERVER,
    Leaf,
    Period,
    authority_certificate,
    certificate_pem,
    leaf_certificate,
    read_certificate,
    requested_key,
)
from hanse_server.provisioning.names import alternative_names

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365

_MOST_DAYS = 36500


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate that the authority has signed.

    Attributes:
        fingerprint: SHA-256 of the certificate's DER form, as 64 hex digits.
        key_fingerprint: SHA-256 of the public key, as 64 hex digits.
        expires: the end of its validity, in UTC.
    """

    name: str
    certificate_pem: bytes
    fingerprint: str
    key_fingerprint: str
    expires: datetime


@dataclass(frozen=True, kw_only=True)
class Credentials(Issued):
    """A certificate together with its private key, where that was made here."""

    key_pem: bytes


class Authority:
    """A certificate authority kept in a folder: ``ca.pem``, and ``ca.key`` (mode 0600).

    Made by :meth:`create` or :meth:`open`.
    """

    def __init__(self, certificate: x509.Certificate, key: PrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @property
    def certificate_pem(self) -> bytes:
        """The authority's own certificate: what every member of the federation trusts."""
        return certificate_pem(self.certificate)

    @staticmethod
    def create(
        folder: Path, *, days: int = AUTHORITY_DAYS, start: datetime | None = None
    ) -> Authority:
        """A new authority in ``folder``, valid for ``days`` days from ``start`` (now).

        Raises:
            CertificateError: if ``folder`` holds something already.
        """
        if folder.exists() and any(folder.iterdir()):
            raise CertificateError(
                f"{folder}: is not empty, so no authority is made there",
                remedy="Name another folder, or restore what is missing in this one.",
            )
        key = new_key()
        # Authorities differ by name, so that a certificate tells which of them it is of.
        name = f"Hanse authority {secrets.token_hex(4)}"
        certificate = authority_certificate(name, key, _period(days, start))
        with new_folder(folder) as made:
            made.chmod(0o700)
            write_secret(made / "ca.key", key_pem(key))
            (made / "ca.pem").write_bytes(certificate_pem(certificate))
        return Authority(certificate, key)

    @staticmethod
    def open(folder: Path) -> Authority:
        """The authority that :meth:`create` left in ``folder``.

        Raises:
            CertificateError: if a file is missing or malformed, or the two do not match.
            CertificateExpiredError: if the authority's own time is over.
        """
        certificate = read_certificate(folder / "ca.pem")
        key = read_key(folder / "ca.key")
        if certificate.public_key() != key.public_key():
            raise CertificateError(
                f"{folder}: ca.key is not the key of ca.pem",
                remedy="Restore both files from the same backup.",
            )
        end = certificate.not_valid_after_utc
        if end < datetime.now(UTC):
            raise CertificateExpiredError(
                f"{folder}: the authority ended on {end:%Y-%m-%d}",
                remedy="Provision the federation anew, in another folder, for all its sites.",
            )
        return Authority(certificate, key)

    def issue_server(
        self,
        name: str,
        hosts: Iterable[str],
        *,
        days: int = LEAF_DAYS,
        start: datetime | None = None,
    ) -> Credentials:
        """A key and certificate for the server, good under each DNS name and address of ``hosts``.

        Raises:
            CertificateError: if a host is neither, or ``days`` passes the authority's end.
        """
        key = new_key()
        leaf = Leaf(
            name=name,
            alternatives=alternative_names(hosts),
            purpose=SERVER,
            public_key=key.public_key(),
            period=_period(days, start),
        )
        return _with_key(self._issue(leaf), key)

    def issue_site(
        self, name: str, *, days: int = LEAF_DAYS, start: datetime | None = None
    ) -> Credentials:
        """A key and certificate for a site; common name and DNS name are the site's.

        Raises:
            CertificateError: if ``name`` cannot be a site's, or ``days`` passes the
                authority's end.
        """
        key = new_key()
        leaf = _site(name, key.public_key(), _period(days, start))
        return _with_key(self._issue(leaf), key)

    def sign_request(
        self, request_pem: bytes, name: str, *, days: int = LEAF_DAYS, start: datetime | None = None
    ) -> Issued:
        """A certificate for a key that was made, and stays, at the site called ``name``.

        Raises:
            CertificateError: if the request is malformed, for another name, or of another kind
                of key, or ``days`` passes the authority's end.
        """
        public_key = requested_key(request_pem, name)
        return self._issue(_site(name, public_key, _period(days, start)))

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Whether ``certificate`` is one of this authority's."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _issue(self, leaf: Leaf) -> Issued:
        last = self.certificate.not_valid_after_utc
        if leaf.period.end > last:
            raise CertificateError(
                f"the certificate of {leaf.name!r} would last until {leaf.period.end:%Y-%m-%d}, "
                f"longer than the authority, which ends on {last:%Y-%m-%d}",
                remedy="Ask for fewer days.",
            )
        certificate = leaf_certificate(leaf, self.certificate, self._key)
        return Issued(
            name=leaf.name,
            certificate_pem=certificate_pem(certificate),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            key_fingerprint=key_fingerprint(leaf.public_key),
            expires=certificate.not_valid_after_utc,
        )


def _with_key(issued: Issued, key: PrivateKey) -> Credentials:
    return Credentials(**vars(issued), key_pem=key_pem(key))


def _site(name: str, public_key: ec.EllipticCurvePublicKey, period: Period) -> Leaf:
    check_site_name(name)
    return Leaf(
        name=name,
        alternatives=[x509.DNSName(name)],
        purpose=CLIENT,
        public_key=public_key,
        period=period,
    )


def _period(days: int, start: datetime | None) -> Period:
    if not 1 <= days <= _MOST_DAYS:
        raise CertificateError(
            f"days={days}: expected 1 to {_MOST_DAYS}", remedy="Ask for another number of days."
        )
    begin = start or datetime.now(UTC)
    return Period(begin=begin, end=begin + timedelta(days=days))

"""What the operator has to know of certificates that end: who may renew, and when each ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from hanse.errors import CertificateError
from hanse.renewal import prover

from hanse_server.provisioning.certificates import read_certificate
from hanse_server.provisioning.layout import Layout
from hanse_server.register import Register, RegisteredSite, no_federation


def check_prover(site: RegisteredSite, request_pem: bytes) -> None:
    """Refuse a request for a registered name, unless the site that is registered has made it.

    Raises:
        CertificateError: if it is not signed with a key that the site is let in with.
    """
    certificate = prover(request_pem)
    if certificate is None or not site.shows(certificate.fingerprint(hashes.SHA256()).hex()):
        raise CertificateError(
            f"{site.name}: registered already, and the request is not signed with the key that "
            "the site is registered with",
            remedy="Ask the site to make it with `hanse client renew`; if it has lost its key, "
            f"first take it out: `hanse provision --remove {site.name}`.",
        )


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A certificate of the federation.

    Attributes:
        whose: ``authority``, ``server``, or the name of a site.
        expires: None where the register does not tell, and the site's own metrics do.
        earlier: whether it is one from before a renewal.
    """

    whose: str
    fingerprint: str
    expires: datetime | None
    earlier: bool = False


def endings(layout: Layout) -> list[Ending]:
    """When each certificate of a federation ends: authority, server, sites.

    Raises:
        RegisterError: if there is no federation, or ``sites.toml`` is malformed.
        CertificateError: if a certificate cannot be read.
    """
    if not layout.register.exists():
        raise no_federation(layout.folder)
    found = []
    # The server's copy: the authority itself may be offline.
    for whose, path in (("authority", layout.server_ca), ("server", layout.server_certificate)):
        certificate = read_certificate(path)
        found.append(
            Ending(
                whose=whose,
                fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
                expires=certificate.not_valid_after_utc,
            )
        )
    for name, site in Register(layout.register).entries().items():
        found.append(Ending(whose=name, fingerprint=site.fingerprint, expires=site.expires))
        found += [
            Ending(whose=name, fingerprint=each.fingerprint, expires=each.expires, earlier=True)
            for each in site.earlier
        ]
    return found

"""Provision a federation: its authority, its server, its sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from hanse.errors import CertificateError
from hanse.keys import check_site_name, read_key, write_secret

from hanse_server.durable import write_file
from hanse_server.provisioning.authority import LEAF_DAYS, Authority, Credentials, Issued
from hanse_server.provisioning.certificates import read_certificate
from hanse_server.provisioning.kit import write_kit
from hanse_server.provisioning.layout import Layout
from hanse_server.provisioning.names import LOOPBACK, alternative_names, names_in
from hanse_server.register import Register, add_site


@dataclass(frozen=True, kw_only=True)
class ProvisionedSite:
    """A site that was added.

    Attributes:
        kit: what to bring to its administrator.
        key_in_kit: whether the kit holds the private key.
        fingerprint: of its certificate, as it stands in the register.
        key_fingerprint: of its key; where the key was made at the site, the administrator saw
            the same.
    """

    name: str
    kit: Path
    key_in_kit: bool
    fingerprint: str
    key_fingerprint: str
    expires: datetime


@dataclass(frozen=True, kw_only=True)
class Provisioned:
    """What :func:`provision` did.

    Attributes:
        new_authority: whether the authority was made now.
        new_server: whether the server's certificate was made now.
        server_expires: when the server's certificate ends.
        added: the sites that are new.
        kept: the sites that were asked for and had been registered before, as they were.
    """

    layout: Layout
    new_authority: bool
    new_server: bool
    server_expires: datetime
    added: tuple[ProvisionedSite, ...]
    kept: tuple[str, ...]


def provision(
    folder: Path,
    *,
    host: str,
    port: int,
    sites: Collection[str] = (),
    requests: Mapping[str, Path] | None = None,
    days: int = LEAF_DAYS,
) -> Provisioned:
    """Make a federation in ``folder``, or add to the one that is there.

    What is there is kept: the authority, a server's certificate that is valid and good under
    ``host``, every registered site. To renew a site, remove it from the register first.

    Args:
        host: the DNS name or address under which the sites reach the server. The server's
            certificate is good under that, and on loopback.
        sites: the sites to make a key, a certificate and a kit for.
        requests: signing requests by site: their keys stay there, their kits are without.
        days: how long the certificates made now are valid.

    Raises:
        CertificateError: if a name, a host or a request is not acceptable, a requested site is
            registered already, or a file cannot be read or written.
        RegisterError: if ``sites.toml`` is malformed.
    """
    layout = Layout(folder)
    try:
        registered = _registered(layout)
        wanted = _wanted(sites, requests or {}, registered)
        alternative_names([host])
        new_authority = not layout.authority.exists()
        authority = (Authority.create if new_authority else Authority.open)(layout.authority)
        issued = [_issue(authority, name, request, days) for name, request in wanted.items()]
        new_server, server_expires = _server(layout, authority, host, days)
        added = tuple(_add(layout, site, authority, f"{host}:{port}") for site in issued)
    except OSError as error:
        raise CertificateError(
            f"{error.filename or folder}: {error.strerror}",
            remedy="Name files that can be read, and a folder that can be written and has room.",
        ) from error
    return Provisioned(
        layout=layout,
        new_authority=new_authority,
        new_server=new_server,
        server_expires=server_expires,
        added=added,
        kept=tuple(name for name in dict.fromkeys(sites) if name in registered),
    )


def _registered(layout: Layout) -> set[str]:
    return set(Register(layout.register).sites()) if layout.register.exists() else set()


def _wanted(
    sites: Collection[str], requests: Mapping[str, Path], registered: set[str]
) -> dict[str, bytes | None]:
    """The new sites, each with its signing request or None; refused before anything is written."""
    for name in (*sites, *requests):
        check_site_name(name)
    if twice := sorted(set(sites) & set(requests)):
        raise CertificateError(
            f"{', '.join(twice)}: asked for both with a signing request and without",
            remedy="Name each site once.",
        )
    if taken := sorted(registered & set(requests)):
        raise CertificateError(
            f"{', '.join(taken)}: registered already, with another certificate",
            remedy="To renew a site, first take it out: `hanse provision --remove <site>`.",
        )
    made_here = {name: None for name in sites if name not in registered}
    return made_here | {name: path.read_bytes() for name, path in requests.items()}


def _issue(authority: Authority, name: str, request: bytes | None, days: int) -> Issued:
    if request is None:
        return authority.issue_site(name, days=days)
    return authority.sign_request(request, name, days=days)


def _server(layout: Layout, authority: Authority, host: str, days: int) -> tuple[bool, datetime]:
    """Keep the server's certificate if it serves, else make one: sites trust the authority."""
    present = _present_server(layout)
    if present is not None and _serves(present, authority, host):
        return False, present.not_valid_after_utc
    layout.server_key.parent.mkdir(parents=True, exist_ok=True)
    credentials = authority.issue_server(host, (host, *LOOPBACK), days=days)
    write_file(layout.server_ca, authority.certificate_pem)
    write_secret(layout.server_key, credentials.key_pem)
    write_file(layout.server_certificate, credentials.certificate_pem)
    return True, credentials.expires


def _present_server(layout: Layout) -> x509.Certificate | None:
    """The server's certificate, if it is there with its key: a crash may have left one of them."""
    if not (layout.server_certificate.exists() and layout.server_key.exists()):
        return None
    certificate = read_certificate(layout.server_certificate)
    matches = certificate.public_key() == read_key(layout.server_key).public_key()
    return certificate if matches else None


def _serves(certificate: x509.Certificate, authority: Authority, host: str) -> bool:
    return (
        authority.has_signed(certificate)
        and certificate.not_valid_after_utc > datetime.now(UTC)
        and names_in(certificate) >= set(alternative_names([host]))
    )


def _add(layout: Layout, site: Issued, authority: Authority, coordinator: str) -> ProvisionedSite:
    kit = layout.kit(site.name)
    kit.parent.mkdir(parents=True, exist_ok=True)
    write_kit(kit, site, authority_pem=authority.certificate_pem, coordinator=coordinator)
    # Last: a site that is registered is never issued again, so its kit has to be whole by now.
    add_site(layout.register, site.name, site.fingerprint)
    return ProvisionedSite(
        name=site.name,
        kit=kit,
        key_in_kit=isinstance(site, Credentials),
        fingerprint=site.fingerprint,
        key_fingerprint=site.key_fingerprint,
        expires=site.expires,
    )

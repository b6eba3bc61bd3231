"""Provision a federation: its authority, its server, its sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from hanse.errors import CertificateError
from hanse.keys import check_site_name, read_key, write_secret
from hanse.renewal import install, settle_key
from hanse.tls import next_key

from hanse_server.durable import write_file
from hanse_server.provisioning.authority import LEAF_DAYS, Authority, Credentials, Issued
from hanse_server.provisioning.certificates import read_certificate
from hanse_server.provisioning.kit import write_kit
from hanse_server.provisioning.layout import Layout
from hanse_server.provisioning.names import LOOPBACK, alternative_names, names_in
from hanse_server.provisioning.renewal import check_prover
from hanse_server.register import Register, RegisteredSite, add_site, renew_site


@dataclass(frozen=True, kw_only=True)
class ProvisionedSite:
    """A site that was added, or got a new certificate.

    Attributes:
        kit: what to bring to its administrator: of a site that was renewed its certificate
            alone.
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
        renewed: the sites with a new certificate, beside which the one of before is let in until
            it ends.
        kept: the sites that were asked for and had been registered before, as they were.
    """

    layout: Layout
    new_authority: bool
    new_server: bool
    server_expires: datetime
    added: tuple[ProvisionedSite, ...]
    renewed: tuple[ProvisionedSite, ...]
    kept: tuple[str, ...]


def provision(
    folder: Path,
    *,
    host: str,
    port: int,
    sites: Collection[str] = (),
    requests: Mapping[str, Path] | None = None,
    days: int = LEAF_DAYS,
    renew_server: bool = False,
) -> Provisioned:
    """Make a federation in ``folder``, or add to the one that is there.

    What is there is kept: the authority, a server's certificate that is valid and good under
    ``host``, every registered site. A request of a registered site is one for renewal, and has
    to be signed with a key that the site is registered with.

    Args:
        host: the DNS name or address under which the sites reach the server. The server's
            certificate is good under that, and on loopback.
        sites: the sites to make a key, a certificate and a kit for.
        requests: signing requests by site: their keys stay there, their kits are without.
        days: how long the certificates made now are valid.
        renew_server: make the server a new key and certificate, under the names of the present
            one and ``host``.

    Raises:
        CertificateError: if a name, a host or a request is not acceptable, a requested site is
            registered already and has not made it, or a file cannot be read or written.
        RegisterError: if ``sites.toml`` is malformed.
    """
    layout = Layout(folder)
    try:
        registered = _registered(layout)
        wanted = _wanted(sites, requests or {}, registered)
        for name in registered.keys() & wanted.keys():
            check_prover(registered[name], wanted[name] or b"")
        alternative_names([host])
        new_authority = not layout.authority.exists()
        authority = (Authority.create if new_authority else Authority.open)(layout.authority)
        issued = [_issue(authority, name, request, days) for name, request in wanted.items()]
        new_server, server_expires = _server(layout, authority, host, days, renew=renew_server)
        new = [site for site in issued if site.name not in registered]
        again = [site for site in issued if site.name in registered]
        added = tuple(_add(layout, site, authority, f"{host}:{port}") for site in new)
        renewed = tuple(_renew(layout, site) for site in again)
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
        renewed=renewed,
        kept=tuple(name for name in dict.fromkeys(sites) if name in registered),
    )


def _registered(layout: Layout) -> dict[str, RegisteredSite]:
    return Register(layout.register).entries() if layout.register.exists() else {}


def _wanted(
    sites: Collection[str], requests: Mapping[str, Path], registered: Collection[str]
) -> dict[str, bytes | None]:
    """Whom to make a certificate, each with its signing request or None.

    Refused before anything is written.
    """
    for name in (*sites, *requests):
        check_site_name(name)
    if twice := sorted(set(sites) & set(requests)):
        raise CertificateError(
            f"{', '.join(twice)}: asked for both with a signing request and without",
            remedy="Name each site once.",
        )
    made_here = {name: None for name in sites if name not in registered}
    return made_here | {name: path.read_bytes() for name, path in requests.items()}


def _issue(authority: Authority, name: str, request: bytes | None, days: int) -> Issued:
    if request is None:
        return authority.issue_site(name, days=days)
    return authority.sign_request(request, name, days=days)


def _server(
    layout: Layout, authority: Authority, host: str, days: int, *, renew: bool
) -> tuple[bool, datetime]:
    """Keep the server's certificate if it serves, else make one: sites trust the authority."""
    present = _present_server(layout)
    if present is not None and not renew and _serves(present, authority, host):
        return False, present.not_valid_after_utc
    layout.server_key.parent.mkdir(parents=True, exist_ok=True)
    names = (str(name.value) for name in names_in(present)) if renew and present else ()
    credentials = authority.issue_server(host, (host, *LOOPBACK, *names), days=days)
    if not _trusts(layout, authority):
        write_file(layout.server_ca, authority.certificate_pem)
    # A server that runs finds the two together at every moment: the certificate goes before.
    write_secret(next_key(layout.server_key), credentials.key_pem)
    install(credentials.certificate_pem, layout.server_certificate, layout.server_key)
    return True, credentials.expires


def _trusts(layout: Layout, authority: Authority) -> bool:
    """Whether the server's ca.pem holds the authority, maybe beside another that ends."""
    if not layout.server_ca.exists():
        return False
    try:
        held = x509.load_pem_x509_certificates(layout.server_ca.read_bytes())
    except ValueError:
        return False
    return authority.certificate in held


def _present_server(layout: Layout) -> x509.Certificate | None:
    """The server's certificate, if it is there with its key: a crash may have left one of them."""
    if not (layout.server_certificate.exists() and layout.server_key.exists()):
        return None
    settle_key(layout.server_certificate, layout.server_key)
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
    add_site(layout.register, site.name, site.fingerprint, site.expires)
    return _provisioned(site, kit)


def _renew(layout: Layout, site: Issued) -> ProvisionedSite:
    path = layout.renewed(site.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, site.certificate_pem)
    renew_site(layout.register, site.name, site.fingerprint, site.expires)
    return _provisioned(site, path)


def _provisioned(site: Issued, kit: Path) -> ProvisionedSite:
    return ProvisionedSite(
        name=site.name,
        kit=kit,
        key_in_kit=isinstance(site, Credentials),
        fingerprint=site.fingerprint,
        key_fingerprint=site.key_fingerprint,
        expires=site.expires,
    )

"""``sites.toml``: the sites that the server lets in, each with the certificate it must show."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from hanse.config import Settings, load_toml, validate
from hanse.errors import NotRegisteredError, RegisterError
from hanse.identity import SITE_NAME
from pydantic import AwareDatetime, Field, field_validator

from hanse_server.durable import write_file

log = logging.getLogger("hanse.register")

_HEADING = """\
# The sites of this federation. A running server reads changes within seconds: a site that is
# taken out is disconnected. Written by `hanse provision`.
"""


class Certificate(Settings):
    """A certificate: the SHA-256 of its DER form as 64 hex digits, and when it ends."""

    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    expires: AwareDatetime | None = None


class RegisteredSite(Certificate):
    """``[[site]]``: a site and its certificate.

    Attributes:
        earlier: certificates from before a renewal, which are let in too: until they end, or
            the operator retires them.
    """

    name: Annotated[str, Field(pattern=SITE_NAME)]
    earlier: tuple[Certificate, ...] = ()

    def shows(self, fingerprint: str) -> bool:
        """Whether a certificate is this site's at this time."""
        valid = (each.fingerprint for each in self.earlier if not _over(each))
        return fingerprint == self.fingerprint or fingerprint in valid


class _RegisterFile(Settings):
    site: tuple[RegisteredSite, ...] = ()

    @field_validator("site")
    @classmethod
    def _distinct(cls, sites: tuple[RegisteredSite, ...]) -> tuple[RegisteredSite, ...]:
        names = [site.name for site in sites]
        shown = [each.fingerprint for site in sites for each in (site, *site.earlier)]
        for attribute, values in (("name", names), ("fingerprint", shown)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"two sites have the {attribute} {min(twice)}")
        return sites


class Register:
    """The register as it stands in its file now; safe to use from several threads.

    A change that makes the file invalid is reported in the log, and the last valid state holds.

    Raises:
        RegisterError: if the file is missing or invalid at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._version = _version(path)
        self._sites = _read(path)

    def admit(self, name: str, fingerprint: str) -> None:
        """Let a site in.

        Raises:
            NotRegisteredError: if it is not in the register, or with another certificate.
        """
        admit(self.entries(), name, fingerprint)

    def sites(self) -> dict[str, str]:
        """The fingerprint of each site's latest certificate, by name."""
        return {name: site.fingerprint for name, site in self.entries().items()}

    def entries(self) -> dict[str, RegisteredSite]:
        """Each site as it stands in the register, by name."""
        with self._lock:
            version = _version(self._path)
            if version != self._version:
                self._version = version
                self._reload()
            return self._sites

    def _reload(self) -> None:
        try:
            self._sites = _read(self._path)
        except RegisterError as error:
            log.error("the register is left as it was: %s", error)  # noqa: TRY400


def admit(entries: Mapping[str, RegisteredSite], name: str, fingerprint: str) -> None:
    """Let a site in by what stands in the register.

    Raises:
        NotRegisteredError: if it is not in it, or with another certificate.
    """
    site = entries.get(name)
    if site is None:
        raise NotRegisteredError(f"site {name!r} is not in the server's register")
    if not site.shows(fingerprint):
        raise NotRegisteredError(
            f"site {name!r} is registered with the certificate {site.fingerprint[:16]}..., "
            f"not with {fingerprint[:16]}..."
        )


def no_federation(folder: Path) -> RegisterError:
    """The error of a folder that `hanse provision` has not made."""
    return RegisterError(
        f"{folder} holds no federation: sites.toml is not there",
        remedy="Make one with `hanse provision`, or name it with --federation.",
    )


def add_site(path: Path, name: str, fingerprint: str, expires: datetime | None = None) -> None:
    """Put a site into the register at ``path``, or give it another certificate; make the file.

    Raises:
        RegisterError: if the file or the new entry is invalid.
    """
    sites = _read(path) if path.exists() else {}
    _write(path, sites, {"name": name, "fingerprint": fingerprint, "expires": expires})


def renew_site(path: Path, name: str, fingerprint: str, expires: datetime) -> RegisteredSite:
    """Give a site a new certificate, beside those that it has until they end.

    Returns:
        The site as it stands in the register now.

    Raises:
        RegisterError: if the file is invalid, or the site is not in it.
    """
    sites = _read(path)
    before = _of(sites, name, path)
    held = (
        Certificate(fingerprint=before.fingerprint, expires=before.expires),
        *before.earlier,
    )
    earlier = [each.model_dump() for each in held if not _over(each)]
    new = {"name": name, "fingerprint": fingerprint, "expires": expires, "earlier": earlier}
    return _write(path, sites, new)[name]


def retire_site(path: Path, name: str) -> None:
    """Let a site in with its latest certificate only.

    Raises:
        RegisterError: if the file is invalid, the site is not in it, or has no other certificate.
    """
    sites = _read(path)
    site = _of(sites, name, path)
    if not site.earlier:
        raise RegisterError(
            f"{path}: site {name!r} has no certificate from before a renewal",
            remedy=f"To shut it out altogether: `hanse provision --remove {name}`.",
        )
    _write(path, sites, site.model_dump(exclude={"earlier"}))


def remove_site(path: Path, name: str) -> None:
    """Take a site out of the register at ``path``.

    Raises:
        RegisterError: if the file is invalid, or the site is not in it.
    """
    sites = _read(path)
    _of(sites, name, path)
    _write(path, {other: sites[other] for other in sites if other != name})


def _of(sites: dict[str, RegisteredSite], name: str, path: Path) -> RegisteredSite:
    if name not in sites:
        raise RegisterError(
            f"{path}: no site {name!r} (registered: {', '.join(sites) or 'none'})",
            remedy="Name a registered site.",
        )
    return sites[name]


def _read(path: Path) -> dict[str, RegisteredSite]:
    read = load_toml(path, _RegisterFile, RegisterError)
    return {site.name: site for site in read.site}


def _write(
    path: Path, sites: dict[str, RegisteredSite], changed: dict[str, Any] | None = None
) -> dict[str, RegisteredSite]:
    """Write the register with one entry ``changed`` or added; the register as it is then."""
    entries: dict[str, Any] = {name: site.model_dump() for name, site in sites.items()}
    if changed is not None:
        entries[changed["name"]] = changed
    read = {"site": list(entries.values())}
    valid = validate(read, _RegisterFile, RegisterError, where=path.name)
    write_file(path, (_HEADING + "".join(map(_tables, valid.site))).encode())
    return {site.name: site for site in valid.site}


def _tables(site: RegisteredSite) -> str:
    earlier = "".join("\n[[site.earlier]]\n" + _lines(each) for each in site.earlier)
    return f'\n[[site]]\nname = "{site.name}"\n{_lines(site)}{earlier}'


def _lines(certificate: Certificate) -> str:
    line = f'fingerprint = "{certificate.fingerprint}"\n'
    if certificate.expires is None:
        return line
    return line + f"expires = {certificate.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}\n"


def _over(certificate: Certificate) -> bool:
    return certificate.expires is not None and certificate.expires < datetime.now(UTC)


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever the file does; None while there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino

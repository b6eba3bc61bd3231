"""``sites.toml``: the sites that the server lets in, each with the fingerprint it must show."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated

from hanse.config import Settings, load_toml, validate
from hanse.errors import NotRegisteredError, RegisterError
from hanse.identity import SITE_NAME
from pydantic import Field, field_validator

from hanse_server.durable import write_file

log = logging.getLogger("hanse.register")

_HEADING = """\
# The sites of this federation. A running server reads changes within seconds: a site that is
# taken out is disconnected. Written by `hanse provision`.
"""


class RegisteredSite(Settings):
    """``[[site]]``: a site, and the SHA-256 of its certificate in DER form as 64 hex digits."""

    name: Annotated[str, Field(pattern=SITE_NAME)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _RegisterFile(Settings):
    site: tuple[RegisteredSite, ...] = ()

    @field_validator("site")
    @classmethod
    def _distinct(cls, sites: tuple[RegisteredSite, ...]) -> tuple[RegisteredSite, ...]:
        for attribute in ("name", "fingerprint"):
            values = [getattr(site, attribute) for site in sites]
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
        expected = self.sites().get(name)
        if expected is None:
            raise NotRegisteredError(f"site {name!r} is not in the server's register")
        if expected != fingerprint:
            raise NotRegisteredError(
                f"site {name!r} is registered with the certificate {expected[:16]}..., "
                f"not with {fingerprint[:16]}..."
            )

    def sites(self) -> dict[str, str]:
        """The fingerprint of each site, by name."""
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


def no_federation(folder: Path) -> RegisterError:
    """The error of a folder that `hanse provision` has not made."""
    return RegisterError(
        f"{folder} holds no federation: sites.toml is not there",
        remedy="Make one with `hanse provision`, or name it with --federation.",
    )


def add_site(path: Path, name: str, fingerprint: str) -> None:
    """Put a site into the register at ``path``, or give it another certificate; make the file.

    Raises:
        RegisterError: if the file or the new entry is invalid.
    """
    sites = _read(path) if path.exists() else {}
    _write(path, sites | {name: fingerprint})


def remove_site(path: Path, name: str) -> None:
    """Take a site out of the register at ``path``.

    Raises:
        RegisterError: if the file is invalid, or the site is not in it.
    """
    sites = _read(path)
    if name not in sites:
        raise RegisterError(
            f"{path}: no site {name!r} (registered: {', '.join(sites) or 'none'})",
            remedy="Name a registered site.",
        )
    _write(path, {other: sites[other] for other in sites if other != name})


def _read(path: Path) -> dict[str, str]:
    read = load_toml(path, _RegisterFile, RegisterError)
    return {site.name: site.fingerprint for site in read.site}


def _write(path: Path, sites: dict[str, str]) -> None:
    entries = [{"name": name, "fingerprint": sites[name]} for name in sites]
    validate({"site": entries}, _RegisterFile, RegisterError, where=path.name)
    tables = [
        f'\n[[site]]\nname = "{name}"\nfingerprint = "{fingerprint}"\n'
        for name, fingerprint in sites.items()
    ]
    write_file(path, (_HEADING + "".join(tables)).encode())


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever the file does; None while there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino

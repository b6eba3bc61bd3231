"""A site's kit: a zip with everything that its administrator needs to join the federation."""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template

from hanse.errors import CertificateError
from hanse.keys import write_secret

from hanse_server.provisioning.authority import Credentials, Issued

_LARGEST = 1 << 20  # bytes, of all that is in a kit

_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others take any memory they declare

_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error)
"""What zipfile raises on archives that are damaged, encrypted, or packed in another way."""

_SECRET = 0o600
_PUBLIC = 0o644

_KEY_IN_KIT = "what proves it; show it to nobody, and destroy the zip it came in"
_KEY_TO_COPY = "what proves it: not in this kit; copy here the one you made the request with"


def site_toml(name: str, coordinator: str) -> str:
    """A ``site.toml`` with every setting in it, explained; those with a default commented out.

    Args:
        coordinator: host:port of the server.
    """
    return _filled("site.toml", name=name, coordinator=coordinator)


def write_kit(path: Path, issued: Issued, *, authority_pem: bytes, coordinator: str) -> None:
    """Write the kit of a site to ``path``, whole or not at all, for its owner's eyes only.

    It has one folder, named like the site: ``certificate.pem``, ``ca.pem``, ``site.toml``,
    ``README.txt``, and ``key.pem`` (mode 0600) unless the key was made at the site.

    Args:
        coordinator: host:port of the server.
    """
    readme = _filled(
        "README.txt",
        name=issued.name,
        coordinator=coordinator,
        expires=f"{issued.expires:%Y-%m-%d}",
        key=_KEY_IN_KIT if isinstance(issued, Credentials) else _KEY_TO_COPY,
        key_fingerprint=issued.key_fingerprint,
    )
    contents = {
        "README.txt": (readme.encode(), _PUBLIC),
        "site.toml": (site_toml(issued.name, coordinator).encode(), _PUBLIC),
        "ca.pem": (authority_pem, _PUBLIC),
        "certificate.pem": (issued.certificate_pem, _PUBLIC),
    }
    if isinstance(issued, Credentials):
        contents["key.pem"] = (issued.key_pem, _SECRET)
    write_secret(path, _zip(issued.name, contents))


def unpack_kit(kit: Path, folder: Path) -> Path:
    """Unpack a kit under ``folder``, with the modes that it asks for; the site's own folder.

    Raises:
        CertificateError: if ``kit`` is not a zip.
    """
    site = folder / kit.stem
    site.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(kit) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            contents = [(entry, archive.read(entry)) for entry in entries]
    except (zipfile.BadZipFile, *_BROKEN) as malformed:
        raise CertificateError(f"{kit}: not a site's kit") from malformed
    for entry, data in contents:
        target = site / Path(entry.filename).name
        if not entry.is_dir() and target.parent == site:
            write_secret(target, data)
            target.chmod(stat.S_IMODE(entry.external_attr >> 16))
    return site


def _check_entries(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse what no kit holds, before memory is taken for it."""
    if sum(max(entry.file_size, entry.compress_size) for entry in entries) > _LARGEST:
        raise zipfile.BadZipFile(f"it unpacks to more than {_LARGEST} bytes")
    if any(entry.compress_type not in _PACKINGS for entry in entries):
        raise zipfile.BadZipFile("it is packed in another way")


def _zip(folder: str, contents: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    now = datetime.now(UTC).timetuple()[:6]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (data, mode) in contents.items():
            entry = zipfile.ZipInfo(f"{folder}/{name}", date_time=now)
            entry.create_system = 3  # Unix: unpackers then take over the mode
            entry.external_attr = (stat.S_IFREG | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _filled(template: str, **values: str) -> str:
    text = (files("hanse_server.provisioning") / "templates" / template).read_text("utf-8")
    return Template(text).substitute(values)

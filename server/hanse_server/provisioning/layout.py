"""Where everything is in a federation's folder at the operator's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The files and folders of the federation in ``folder``."""

    folder: Path

    @property
    def authority(self) -> Path:
        """``ca.pem`` and ``ca.key``. Whoever has the key can make sites: keep it offline."""
        return self.folder / "authority"

    @property
    def server_ca(self) -> Path:
        """The authority's certificate, once more: the server needs no more of the authority."""
        return self.folder / "server" / "ca.pem"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server" / "server.pem"

    @property
    def server_key(self) -> Path:
        """The server's private key (mode 0600)."""
        return self.folder / "server" / "server.key"

    @property
    def register(self) -> Path:
        """The sites that the server lets in, by name and certificate."""
        return self.folder / "sites.toml"

    def renewed(self, site: str) -> Path:
        """The latest certificate of ``site``, where that was renewed; for its administrator."""
        return self.folder / "kits" / f"{site}.pem"

    def kit(self, site: str) -> Path:
        """The zip for the administrator of ``site``."""
        return self.folder / "kits" / f"{site}.zip"

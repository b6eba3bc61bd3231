"""A federation on loopback, provisioned as an operator does it: for Hanse, and for the floor."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hanse_server.provisioning.federation import provision
from hanse_server.provisioning.kit import unpack_kit
from hanse_server.provisioning.layout import Layout

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Provisioned:
    """A folder with a federation, and the kits of its sites unpacked in it.

    Attributes:
        port: one that nothing listens on.
    """

    folder: Path
    port: int

    @staticmethod
    def create(folder: Path, sites: Sequence[str]) -> Provisioned:
        """Make certificates of the usual kind for the server and the sites."""
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            made = Provisioned(folder, probe.getsockname()[1])
        provision(made.layout.folder, host=HOST, port=made.port, sites=sites)
        for name in sites:
            unpack_kit(made.layout.kit(name), folder)
        return made

    @property
    def address(self) -> str:
        """Of the server."""
        return f"{HOST}:{self.port}"

    @property
    def layout(self) -> Layout:
        """The operator's files."""
        return Layout(self.folder / "federation")

    def server_files(self) -> tuple[Path, Path, Path]:
        """The server's authority, certificate and key."""
        layout = self.layout
        return layout.server_ca, layout.server_certificate, layout.server_key

    def site_files(self, name: str) -> tuple[Path, Path, Path]:
        """A site's authority, certificate and key."""
        folder = self.folder / name
        return folder / "ca.pem", folder / "certificate.pem", folder / "key.pem"

"""The demo's federation: its folder, its certificates, its site files."""

from __future__ import annotations

import re
import shutil
import socket
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hanse.errors import WorkspaceError
from hanse.examples import example

from hanse_server.provisioning.federation import provision
from hanse_server.simulation.sites import sites_of_folder

MARK = ".hanse-demo"
HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class DemoFederation:
    """Where the demo's parts are.

    Attributes:
        sites: name -> ``site.toml``.
        port: of the server.
        metrics_ports: of the metrics of the server, under ``server``, and of each site.
    """

    folder: Path
    sites: dict[str, Path]
    port: int
    metrics_ports: dict[str, int]

    @property
    def job(self) -> Path:
        """The job that the federation runs."""
        return self.folder / "sites" / "job.toml"

    @property
    def job_without_privacy(self) -> Path:
        """The same without privacy, to compare with."""
        return self.folder / "sites" / "job-without-privacy.toml"

    @property
    def run(self) -> Path:
        """The server's workspace."""
        return self.folder / "run"

    @property
    def certificates(self) -> Path:
        """What `hanse provision` made."""
        return self.folder / "federation"

    def log(self, name: str) -> Path:
        """The log of the server, under ``server``, or of a site."""
        return self.folder / "logs" / f"{name}.log"

    def metrics_urls(self) -> dict[str, str]:
        """Where each process shows its metrics while it runs."""
        return {name: f"http://{HOST}:{port}/metrics" for name, port in self.metrics_ports.items()}


def set_up(folder: Path) -> DemoFederation:
    """Lay the demo out in ``folder``: records, certificates, kits, site files.

    Raises:
        WorkspaceError: if ``folder`` holds something else than a demo.
    """
    _make_room(folder)
    shutil.copytree(example("heart"), folder / "sites")
    (folder / "logs").mkdir()
    sites = sites_of_folder(folder / "sites")
    port, *metrics_ports = free_ports(2 + len(sites.names))
    made = provision(folder / "federation", host=HOST, port=port, sites=sites.names)
    for site in made.added:
        with zipfile.ZipFile(site.kit) as kit:
            kit.extractall(folder / "sites")
        (folder / "sites" / site.name / "key.pem").chmod(0o600)
    federation = DemoFederation(
        folder=folder,
        sites=dict(zip(sites.names, sites.files, strict=True)),
        port=port,
        metrics_ports=dict(zip(("server", *sites.names), metrics_ports, strict=True)),
    )
    for name, file in federation.sites.items():
        _set_ports(file, port, federation.metrics_ports[name])
    return federation


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on at this moment, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _make_room(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise WorkspaceError(
                f"{folder} holds something else than a demo",
                remedy="Name an empty folder with --workspace.",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _set_ports(file: Path, port: int, metrics_port: int) -> None:
    """Put this demo's ports in place of the example's."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^coordinator = .*$", f'coordinator = "{HOST}:{port}"', text)
    text = re.sub(r"(?m)^metrics_port = .*$", f"metrics_port = {metrics_port}", text)
    file.write_text(text, encoding="utf-8")

"""Fixtures for all tests: authorities, free ports, and federations on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hanse_server.provisioning.authority import Authority

from tests.loopback import Loopback


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], Authority]:
    """Makes certificate authorities, each in a folder of the name given."""
    return lambda name: Authority.create(tmp_path / name)


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def loopback(tmp_path: Path, free_port: int) -> Iterator[Loopback]:
    """A federation on loopback: a server, and clients as the test asks for them."""
    with Loopback(tmp_path, free_port) as federation:
        yield federation

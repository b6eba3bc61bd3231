"""Which Ray cluster a simulation runs on, and how many workers it has room for."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hanse.errors import JobError, MissingExtraError, UnreachableError

KNOCK_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where workers run, and with what.

    Attributes:
        address: of a cluster that is there, as ``ray start`` prints it, or ``auto`` for the one
            on this machine; None to start one here that ends with the run.
        gpus: of each worker; 0.5 lets two share one.
    """

    address: str | None = None
    gpus: float = 0.0


def connect(address: str | None) -> Any:
    """The module ``ray``, connected to a cluster."""
    # Before Ray is imported: it reads them once. It is to tell nobody that it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as missing:
        raise MissingExtraError(
            "the engine `ray` needs packages that are not installed here",
            remedy="pip install 'hanse[ray]'",
        ) from missing
    try:
        _knock(address)
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            configure_logging=False,
            log_to_driver=False,
        )
    except (OSError, ValueError) as absent:
        raise UnreachableError(
            f"there is no Ray cluster at {address}: {absent}",
            remedy="Start one with `ray start --head`, and name its address with --ray-address.",
        ) from absent
    return ray


def _knock(address: str | None) -> None:
    """Find out at once whether anything listens at an address: Ray itself takes minutes.

    Raises:
        OSError: if nothing does.
    """
    host, separator, port = (address or "").rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def room_in(
    has: Mapping[str, float], gpus: float, workers: int | None, sites: int
) -> tuple[int, int]:
    """The cores of a cluster, and how many workers to start in it.

    Raises:
        JobError: if it lacks the GPUs.
    """
    cores = int(has.get("CPU", 1))
    if not gpus:
        return cores, min(workers or cores, sites)
    there = math.floor(has.get("GPU", 0.0))
    # Ray divides single GPUs, and gives whole ones to who asks for more than one.
    room = there * math.floor(1 / gpus) if gpus <= 1 else math.floor(there / gpus)
    count = min(workers or max(room, 1), sites)
    if count > room:
        raise JobError(
            f"{count} workers with {gpus:g} GPUs each do not fit in the Ray cluster, which has "
            f"{there}",
            remedy="Ask for less with --ray-gpus or --workers.",
        )
    return cores, count

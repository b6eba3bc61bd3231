"""The rules of the stream: versions, what gRPC is told, and how an end is announced."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import hanse
from hanse.errors import HanseError, ProtocolError, error_types
from hanse.wire import hanse_pb2 as pb
from hanse.wire.limits import Limits
from hanse.wire.message import CHUNK_BYTES

MAJOR, MINOR = 1, 0

HEARTBEAT_SECONDS = 10.0

MISSED_HEARTBEATS = 3
"""After so many heartbeats without a word the other side is given up."""

STOPPING = "stopping"
"""The reason of a Goodbye that is no refusal."""

SERVICE, METHOD = "hanse.Link", "Connect"

_FRAME_OVERHEAD = 64 * 1024


def grpc_options(limits: Limits) -> list[tuple[str, int]]:
    """Channel arguments of both ends.

    HTTP/2 pings find a dead connection even while it is idle; they are allowed at any time.
    """
    largest = max(limits.max_header_bytes, CHUNK_BYTES) + _FRAME_OVERHEAD
    return [
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def this_protocol() -> pb.Protocol:
    """The version that this software speaks."""
    return pb.Protocol(major=MAJOR, minor=MINOR)


def versions() -> dict[str, str]:
    """The versions of the software that a peer may want to know."""
    found = {"hanse": hanse.__version__}
    for package in ("flwr", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_protocol(protocol: pb.Protocol, peer_versions: dict[str, str], peer: str) -> None:
    """Refuse another major version; any minor one will do.

    Raises:
        ProtocolError: naming both versions.
    """
    if protocol.major != MAJOR:
        theirs = peer_versions.get("hanse", "unknown")
        raise ProtocolError(
            f"{peer} speaks protocol {protocol.major}.{protocol.minor} (hanse {theirs}), this "
            f"side {MAJOR}.{MINOR} (hanse {hanse.__version__})",
            remedy="Install the same version of hanse on both sides.",
        )


def goodbye(error: HanseError, *, retry: bool) -> pb.Goodbye:
    """The frame that tells the other side why the stream ends."""
    return pb.Goodbye(reason=error.label, message=error.message, remedy=error.remedy, retry=retry)


def error_of(frame: pb.Goodbye) -> HanseError:
    """The error that a Goodbye stands for."""
    kind = _KINDS.get(frame.reason, HanseError)
    return kind(frame.message, remedy=frame.remedy or None)


_KINDS = {kind.label: kind for kind in error_types()}

"""The rules of the stream: versions, what gRPC is told, and how an end is announced."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

import hanse
from hanse.errors import HanseError, ProtocolError, WireError, error_types
from hanse.plain import plain
from hanse.wire import hanse_pb2 as pb
from hanse.wire.limits import Limits
from hanse.wire.message import CHUNK_BYTES, INLINE_BYTES

MAJOR, MINOR = 1, 0

HEARTBEAT_SECONDS = 10.0

MISSED_HEARTBEATS = 3
"""After so many heartbeats without a word the other side is given up."""

STOPPING = "stopping"
"""The reason of a Goodbye that is no refusal."""

SERVICE, METHOD = "hanse.Link", "Connect"

MOST_TOLD = 1024
"""Instructions in one list of a Hello. A site that holds more tells of so many: what it leaves
out is asked for again, and answered from its outbox."""

LONGEST_ID = 64
"""Characters of an id in a Hello."""

LONGEST_WORD = 1000
"""Characters of what the other side says for people to read."""

_FEW = 64  # of what a Hello tells of the software

_HEARTBEATS = (0.01, 300.0)  # seconds between two that a site agrees to

_FRAME_OVERHEAD = 64 * 1024


def grpc_options(limits: Limits) -> list[tuple[str, int]]:
    """Channel arguments of both ends.

    HTTP/2 pings find a dead connection even while it is idle; they are allowed at any time.
    """
    largest = max(limits.max_header_bytes + INLINE_BYTES, CHUNK_BYTES) + _FRAME_OVERHEAD
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
    return dict(_installed())


@cache  # to find one out takes a millisecond
def _installed() -> dict[str, str]:
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
        theirs = plain(peer_versions.get("hanse", "unknown"), LONGEST_ID)
        raise ProtocolError(
            f"{peer} speaks protocol {protocol.major}.{protocol.minor} (hanse {theirs}), this "
            f"side {MAJOR}.{MINOR} (hanse {hanse.__version__})",
            remedy="Install the same version of hanse on both sides.",
        )


def check_hello(hello: pb.Hello, peer: str) -> None:
    """Refuse a Hello that would have the server keep more than a site has reason to tell.

    Raises:
        WireError: naming what there is too much of.
    """
    told = (*hello.held, *hello.busy, *(each.message_id for each in hello.partial))
    most = max(len(hello.held), len(hello.busy), len(hello.partial))
    few = (*hello.capabilities, *hello.versions.keys(), *hello.versions.values())
    if most > MOST_TOLD:
        raise WireError(f"{peer}: a Hello that tells of {most} instructions passes {MOST_TOLD}")
    if len(few) > _FEW:
        raise WireError(f"{peer}: a Hello with {len(few)} words of its software passes {_FEW}")
    longest = max((len(text) for text in (*told, *few)), default=0)
    if longest > LONGEST_ID:
        raise WireError(f"{peer}: a word of {longest} characters in a Hello passes {LONGEST_ID}")


def heartbeat_of(welcome: pb.Welcome) -> float:
    """How often both ends are to give a sign of life, in seconds.

    Raises:
        WireError: if it would never be, or without a pause.
    """
    seconds = welcome.heartbeat_seconds or HEARTBEAT_SECONDS
    least, most = _HEARTBEATS
    if not least <= seconds <= most:  # so that NaN is not
        raise WireError(f"heartbeat_seconds = {seconds:g} is not between {least:g} and {most:g}")
    return seconds


def goodbye(error: HanseError, *, retry: bool) -> pb.Goodbye:
    """The frame that tells the other side why the stream ends."""
    return pb.Goodbye(reason=error.label, message=error.message, remedy=error.remedy, retry=retry)


def error_of(frame: pb.Goodbye) -> HanseError:
    """The error that a Goodbye stands for."""
    kind = _KINDS.get(frame.reason, HanseError)
    remedy = plain(frame.remedy, LONGEST_WORD)
    return kind(plain(frame.message, LONGEST_WORD), remedy=remedy or None)


_KINDS = {kind.label: kind for kind in error_types()}

"""What things may be called: sites, the nodes that Flower knows them by, and metrics."""

from __future__ import annotations

import hashlib

SITE_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""What a site may be called: a DNS label, as it stands in the site's certificate."""


METRIC_NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
"""What a metric may be called: its name becomes a label in Prometheus and a key in files."""


def node_id_of(site: str) -> int:
    """The node id of a site: a stable 64-bit hash of its name.

    The first eight bytes of SHA-256, big-endian, with the top bit cleared: Flower keeps node
    ids in signed 64-bit fields too. Never 0 or 1, which Flower gives to nobody and the server.
    """
    number = int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "big") >> 1
    return number if number > 1 else number + 2

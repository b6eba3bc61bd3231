"""All targets, by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz import (
    checkpoints,
    encoded,
    identities,
    readers,
    secure,
    server_link,
    server_trail,
    settings,
    site_link,
    stores,
)
from tests.fuzz.target import Open

TARGETS: Mapping[str, Open] = {
    "contents": server_link.replies,
    "encoded-updates": encoded.updates,
    "leftovers": encoded.leftovers,
    "frames-from-site": server_link.from_site,
    "frames-to-site": site_link.to_site,
    "instructed-jobs": settings.instructed_jobs,
    "jobs": settings.jobs,
    "sites": settings.sites,
    "registers": settings.registers,
    "certificates": identities.certificates,
    "keys": identities.keys,
    "requests": identities.requests,
    "kits": identities.kits,
    "checkpoints": checkpoints.checkpoints,
    "weights": checkpoints.weights,
    "workspaces": checkpoints.workspaces,
    "journals": stores.journals,
    "outboxes": stores.outboxes,
    "ledgers": stores.ledgers,
    "audit-trails": stores.trails,
    "server-trails": server_trail.trails,
    "secure-messages": secure.stage_messages,
    "secure-rounds": secure.hostile_rounds,
    "idx": readers.idx_files,
    "npz": readers.npz_files,
    "png": readers.png_files,
    "csv": readers.csv_files,
    "parquet": readers.parquet_files,
}

SHARES: Mapping[str, float] = dict.fromkeys(TARGETS, 2.0) | {
    "contents": 30,
    "encoded-updates": 10,
    "frames-from-site": 20,
    "instructed-jobs": 6,
    "jobs": 3,
    "requests": 15,
    "keys": 4,
    "certificates": 6,
    "secure-messages": 15,
    "idx": 8,
    "checkpoints": 3,
    "weights": 1,
    "kits": 1,
    "journals": 0.5,
    "outboxes": 0.5,
    "ledgers": 0.3,
    "secure-rounds": 0.3,
    "csv": 0.5,
    "png": 1,
}
"""How many of a run's inputs each target gets, in proportion: the quick ones the most."""

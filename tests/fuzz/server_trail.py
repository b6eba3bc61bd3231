"""The audit trail of the server, held against the rest of its workspace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hanse_server.audit.verify import verify_trail
from hanse_server.audit.view import audit_result, audit_view
from hanse_server.workspace import Workspace, audit_path

from tests.fuzz.stores import change_lines, linked
from tests.fuzz.target import Target, each
from tests.harbour import job


def trails(folder: Path) -> Target:
    """The trail as it is, or rightly chained; the workspace has no rounds."""
    run = str(Workspace(folder, job()).run_id)
    path = audit_path(folder)

    def read(data: bytes) -> None:
        path.write_bytes(linked(data[1:]) if data[:1] == b"\1" else data[1:])
        each(
            lambda: verify_trail(folder),
            lambda: audit_view(
                audit_result(folder, site="east", number=1, verify=False, against=())
            ),
            lambda: audit_view(
                audit_result(folder, site=None, number=None, verify=True, against=())
            ),
        )

    started = {"event": "started", "time": 1.0, "run": run, "after": 0, "versions": {"hanse": "0"}}
    asked = {"site": "east", "id": "a" * 32, "type": "train", "round": "1"}
    told: list[dict[str, Any]] = [
        started,
        {"event": "joined", "time": 2.0, "site": "east", "fingerprint": "f" * 64},
        {"event": "instructed", "time": 3.0, **asked, "digest": "d" * 64, "bytes": 10},
        {"event": "accepted", "time": 4.0, **asked, "blake3": "e", "bytes": 9, "metrics": "m"},
        {"event": "left_out", "time": 5.0, **asked, "reason": "late"},
        {"event": "settled", "time": 6.0, "sites": {"east": ["a" * 32]}},
        {"event": "stopped", "time": 7.0, "reason": "done"},
    ]
    kept = {"round": 1, "outcome": "completed", "model": "m", "released": "r", "judged": {}}
    ended = [*told[:4], {"event": "kept", "time": 5.0, **kept, "folded": {"a" * 32: "east"}}]
    seeds = [
        b"\1" + "".join(json.dumps(line) + "\n" for line in lines).encode()
        for lines in ([started], told, ended)
    ]
    return Target(run=read, seeds=seeds, mutate=change_lines)

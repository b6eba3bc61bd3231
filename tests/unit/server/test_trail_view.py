"""Lines of a server's trail that no server wrote, whatever types are in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hanse.errors import TrailError
from hanse_server.audit.verify import verify_trail
from hanse_server.audit.view import audit_result, audit_view
from hanse_server.workspace import Workspace, audit_path

from tests.harbour import job


@pytest.mark.parametrize(
    "line",
    [
        {"event": "joined"},
        {"event": "joined", "time": float("nan")},
        {"event": "joined", "time": 1e300},
        {"event": 3, "time": 1.0},
        {"event": "kept", "time": 1.0, "folded": 3},
        {"event": "started", "time": 1.0, "after": 0, "versions": []},
        {"event": "settled", "time": 1.0, "sites": {"east": 3}},
    ],
)
def test_it_is_refused_by_name(tmp_path: Path, line: dict[str, Any]) -> None:
    Workspace(tmp_path, job())
    audit_path(tmp_path).write_text(json.dumps(line) + "\n")
    with pytest.raises(TrailError, match="cannot be shown"):
        audit_view(audit_result(tmp_path, site=None, number=None, verify=False, against=()))


def test_a_line_that_cannot_be_searched_is_refused_by_name(tmp_path: Path) -> None:
    Workspace(tmp_path, job())
    line = {"event": "kept", "time": 1.0, "folded": 3}
    audit_path(tmp_path).write_text(json.dumps(line) + "\n")
    with pytest.raises(TrailError, match="is not what a server writes"):
        audit_result(tmp_path, site="east", number=None, verify=False, against=())


@pytest.mark.parametrize("after", [float("inf"), float("nan"), "x", [1]])
def test_a_start_that_makes_no_sense_is_refused_by_name(tmp_path: Path, after: object) -> None:
    run = Workspace(tmp_path, job()).run_id
    line = {"event": "started", "time": 1.0, "run": str(run), "after": after, "previous": "0" * 64}
    audit_path(tmp_path).write_text(json.dumps(line) + "\n")
    with pytest.raises(TrailError, match="line 1 of the trail, started, makes no sense"):
        verify_trail(tmp_path)

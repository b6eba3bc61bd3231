"""The audit trail: whole lines only, whatever a crash or a full disk leaves."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
from hanse.errors import LedgerError
from hanse_client.audit import AuditTrail, first_break, read_audit


def test_a_line_that_a_crash_cut_off_is_struck(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    trail.write("released", id="1")
    trail.write("released", id="2")
    path.write_bytes(path.read_bytes()[:-20])
    AuditTrail(path).write("released", id="3")
    assert first_break(path) is None
    assert [line["id"] for line in read_audit(path)] == ["1", "3"]


def test_a_line_that_the_disk_has_no_room_for_leaves_no_piece(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    trail.write("released", id="1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, limits[1]))
    try:
        with pytest.raises(LedgerError, match="cannot be written"):
            trail.write("released", id="2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    trail.write("released", id="3")
    assert first_break(path) is None
    assert [line["id"] for line in read_audit(path)] == ["1", "3"]


def test_a_changed_or_removed_line_breaks_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    for number in range(4):
        trail.write("released", id=str(number))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[2], lines[3]]))
    assert first_break(path) == 2
    changed = json.dumps(json.loads(lines[1]) | {"id": "9"}, sort_keys=True) + "\n"
    path.write_text("".join([lines[0], changed, *lines[2:]]))
    assert first_break(path) == 3

"""The audit trail: whole lines only, whatever a crash or a full disk leaves."""

from __future__ import annotations

import fcntl
import hashlib
import json
import resource
import signal
import threading
from pathlib import Path

import pytest
from hanse.errors import LedgerBrokenError, LedgerError
from hanse_client.audit import GENESIS, AuditTrail, last_digest, read_audit, read_chained


def test_a_line_that_a_crash_cut_off_is_struck(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    trail.write("released", id="1")
    trail.write("released", id="2")
    path.write_bytes(path.read_bytes()[:-20])
    AuditTrail(path).write("released", id="3")
    assert [line["id"] for line in read_chained(path)] == ["1", "3"]


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
    assert [line["id"] for line in read_chained(path)] == ["1", "3"]


def test_a_changed_or_removed_line_breaks_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    for number in range(4):
        trail.write("released", id=str(number))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[2], lines[3]]))
    with pytest.raises(LedgerBrokenError, match="line 2 does not follow"):
        read_chained(path)
    changed = json.dumps(json.loads(lines[1]) | {"id": "9"}, sort_keys=True) + "\n"
    path.write_text("".join([lines[0], changed, *lines[2:]]))
    with pytest.raises(LedgerBrokenError, match="line 3 does not follow"):
        read_chained(path)


def test_opening_it_a_second_time_strikes_no_line_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditTrail(path).write("released", id="1")
    with path.open("ab", buffering=0) as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        first.write(b'{"event": ')  # in the middle of a line
        second = threading.Thread(target=AuditTrail, args=(path,))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        first.write(b'"asked"}\n')
    second.join()
    assert len(read_audit(path)) == 2


def test_lines_follow_from_one_another_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "state" / "audit.jsonl"
    for number in range(3):
        AuditTrail(path).write("released", id=str(number))
    lines = read_chained(path)
    assert lines[0]["previous"] == GENESIS
    assert len({line["previous"] for line in lines}) == 3


def test_lines_removed_at_the_end_show_in_the_last_digest(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    trail.write("released", id="1")
    trail.write("released", id="2")
    noted = last_digest(path)
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert len(read_chained(path)) == 1  # the chain itself does not tell
    assert last_digest(path) != noted


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditTrail(path).write("released", id="1")
    with path.open("a") as file:
        file.write('{"event": "rel')
    assert [line["id"] for line in read_chained(path)] == ["1"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditTrail(path).write("released", id="1")
    with path.open("a") as file:
        file.write("nonsense\n")
    for read in (read_audit, read_chained):
        with pytest.raises(LedgerBrokenError, match="line 2 is damaged"):
            read(path)


def test_a_trail_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(LedgerError, match="cannot be written: Is a directory"):
        trail.write("released", id="1")


def test_a_trail_whose_chain_is_broken_cannot_be_read_as_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path)
    trail.write("released", id="1")
    assert [line["id"] for line in trail.read()] == ["1"]
    path.write_text(path.read_text() + '{"event": "released", "id": "2"}\n')
    with pytest.raises(LedgerBrokenError, match="line 2 does not follow"):
        trail.read()


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_audit(tmp_path / "none.jsonl") == []
    assert read_chained(tmp_path / "none.jsonl") == []
    AuditTrail(None).write("released", id="1")


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 100_000, b"[1]", b"7"])
def test_a_line_that_nobody_wrote_is_damage(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(LedgerBrokenError, match="is damaged"):
        read_audit(path)
    assert last_digest(path) == hashlib.sha256(line).hexdigest()

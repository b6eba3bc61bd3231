"""status.json: always the last word, in few writes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hanse.errors import WorkspaceError
from hanse_server.status import Awaited, Status, StatusFile, read_status
from hanse_server.views import status_view
from rich.console import Console


def status(*sites: str, phase: str = "training") -> Status:
    now = time.time()
    awaited = tuple(Awaited(site=site, since=now - 5, until=now + 60) for site in sites)
    return Status(phase=phase, round=2, rounds=5, connected=("a", "b"), awaited=awaited)


def test_the_last_word_is_written_even_if_many_came_before_it_at_once(tmp_path: Path) -> None:
    with StatusFile(tmp_path, every=0.05) as file:
        file.show(status("a", "b"))
        for _ in range(1000):
            file.show(status("a"))
        file.show(status("b"))
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # nothing more is told, as in a stall
            written = (tmp_path / "status.json").exists()
            if written and [each.site for each in read_status(tmp_path).awaited] == ["b"]:
                break
            time.sleep(0.01)
        assert [each.site for each in read_status(tmp_path).awaited] == ["b"]


def test_the_end_is_written_at_once(tmp_path: Path) -> None:
    with StatusFile(tmp_path, every=60) as file:
        file.show(status("a"))
        file.show(status(phase="done"))
    assert read_status(tmp_path).phase == "done"


def test_no_status_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no status"):
        read_status(tmp_path)


def test_a_stall_names_the_site_since_when_and_until_when(tmp_path: Path) -> None:
    with StatusFile(tmp_path) as file:
        file.show(status("hungary"))
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(status_view(read_status(tmp_path), running=True))
    text = console.export_text()
    console.file.close()
    assert "hungary" in text
    assert "5 s" in text
    assert "awaited" in text


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "{",
        "[" * 100_000,
        '{"phase": "done", "round": 1, "rounds": 2, "awaited": [7]}',
        '{"phase": "done", "round": 1, "rounds": 2, "connected": true}',
    ],
)
def test_a_damaged_status(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(WorkspaceError, match=r"status\.json cannot be read: it is damaged"):
        read_status(tmp_path)

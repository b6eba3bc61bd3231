"""What an administrator pins: every source that makes a task."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hanse.task import task_digest, task_names

TASK = """
from hanse.task import Task
class Mine(Task):
    def model(self): ...
    def read(self, source): ...
    def metrics(self, outputs, targets): ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mine_pinned"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "tasks.py").write_text(TASK)
    (folder / "helper.py").write_text("LIMIT = 1\n")
    (tmp_path / "mine_alone.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


def test_a_changed_helper_is_another_task(package: Path) -> None:
    before = task_digest("mine_pinned.tasks:Mine")
    assert task_digest("mine_pinned.tasks:Mine") == before
    (package / "helper.py").write_text("LIMIT = 2\n")
    changed = task_digest("mine_pinned.tasks:Mine")
    (package / "helper.py").rename(package / "other.py")
    assert len({before, changed, task_digest("mine_pinned.tasks:Mine")}) == 3


def test_a_module_outside_a_package_counts_alone(package: Path) -> None:
    before = task_digest("mine_alone:Mine")
    (package.parent / "neighbour.py").write_text("")
    assert task_digest("mine_alone:Mine") == before
    (package.parent / "mine_alone.py").write_text(TASK + "# changed\n")
    assert task_digest("mine_alone:Mine") != before


def test_the_shipped_tasks_have_digests_of_their_own() -> None:
    digests = {task_digest(name) for name in task_names()}
    assert len(digests) == len(task_names()) >= 2

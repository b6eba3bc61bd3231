"""Small versions of the benchmarks that start processes, so that they cannot rot."""

from __future__ import annotations

from tests.benchmarks import startup


def test_start_up_is_told() -> None:
    bare, command, torch, client = startup.rows(repeats=1)

    assert bare["seconds"] < command["seconds"] < client["seconds"]
    assert client["over"] == torch["what"]

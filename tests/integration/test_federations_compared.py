"""What benchmarks compare, on cases so small that they cannot rot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.federations import contest
from tests.benchmarks.federations.case import Case
from tests.benchmarks.federations.contest import ALL, FLOOR, Contestant, absent, compare

CASE = Case(sites=2, megabytes=0.02, rounds=2)


@pytest.mark.parametrize("contestant", ALL, ids=lambda each: each.name)
def test_a_contestant_that_is_installed_runs_its_rounds(contestant: Contestant) -> None:
    if not contestant.installed:
        pytest.skip(f"{contestant.name} is not installed: make bench-peers")

    measured = contestant.run(CASE)

    assert len(measured.seconds) == CASE.rounds + 1
    assert all(seconds > 0 for seconds in measured.seconds)
    assert measured.peak_bytes >= measured.rest_bytes > 0


def test_who_is_not_installed_is_left_out_and_said_to_be() -> None:
    nobody = Contestant(name="nobody", module="nothing", environment="nowhere")

    rows = list(compare(CASE, (FLOOR, nobody), repeats=2))

    assert [row["contestant"] for row in rows] == ["floor"]
    assert absent((FLOOR, nobody)) == ["nobody is left out: `make bench-peers` would install it."]


def test_the_end_of_a_log_tells_why_a_contestant_failed() -> None:
    broken = Contestant(name="broken", module="tests.benchmarks.federations.no_such_module")

    with pytest.raises(RuntimeError, match="no_such_module"):
        broken.run(CASE)


def test_a_peer_that_fails_does_not_end_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contest, "PEERS", tmp_path)
    (tmp_path / "peer" / "bin").mkdir(parents=True)
    (tmp_path / "peer" / "bin" / "python").symlink_to(sys.executable)
    broken = Contestant(name="broken", module="tests.benchmarks.no_such_module", environment="peer")

    rows = list(compare(CASE, (FLOOR, broken), repeats=1))

    assert [row["contestant"] for row in rows] == ["floor"]
    assert "no_such_module" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("megabytes", "shapes"),
    [(0.39, [(98, 1000)]), (4, [(1000, 1000)]), (9, [(1000, 1000), (1000, 1000), (250, 1000)])],
)
def test_a_model_has_the_megabytes_of_its_case(
    megabytes: float, shapes: list[tuple[int, int]]
) -> None:
    case = Case(sites=1, megabytes=megabytes, rounds=1)

    assert case.shapes == shapes
    assert case.model_bytes == pytest.approx(megabytes * 1e6, rel=0.01)

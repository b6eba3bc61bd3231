from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "speed.py").write_text(
        '"""How fast it is."""\n'
        "def rows():\n"
        "    return [{'what': 'a', 'seconds': 0.123456789}, {'what': 'b', 'seconds': 2.0}]\n"
    )
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "build" / "bench")
    return tmp_path


def test_a_benchmark_prints_its_table_and_writes_its_rows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["speed"]) == 0

    written = json.loads((folder / "build" / "bench" / "speed.json").read_text())
    assert written["rows"] == [{"what": "a", "seconds": 0.123456789}, {"what": "b", "seconds": 2.0}]
    assert written["title"] == "How fast it is."
    assert written["machine"]["cores"] >= 1
    printed = capsys.readouterr().out
    assert "How fast it is." in printed
    assert "0.1235" in printed


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["other"], 2)])
def test_the_benchmarks_are_listed(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert run.main(arguments) == code

    assert "speed: How fast it is." in capsys.readouterr().out


def test_a_benchmark_that_needs_data_is_given_its_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "judge.py").write_text(
        '"""How good it is."""\ndef rows(data):\n    return [{"in": data.name}]\n'
    )
    assert run.main(["judge"]) == 2
    assert "DATA=folder" in capsys.readouterr().out
    assert run.main(["judge", str(folder / "digits")]) == 0
    assert "digits" in capsys.readouterr().out


def test_what_is_to_be_said_beside_the_table_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = folder / "speed.py"
    module.write_text(module.read_text() + "def notes():\n    return ['One is left out.']\n")

    assert run.main(["speed"]) == 0

    assert "One is left out." in capsys.readouterr().out
    written = json.loads((folder / "build" / "bench" / "speed.json").read_text())
    assert written["notes"] == ["One is left out."]


@pytest.mark.parametrize("name", run.benchmarks(run.FOLDER))
def test_each_benchmark_has_a_title_and_rows(name: str) -> None:
    module = run.load(run.FOLDER, name)

    assert run.title(module).endswith(".")
    assert callable(module.rows)

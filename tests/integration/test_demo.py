"""`hanse demo`, as a newcomer runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.hospitals import hanse


def test_the_demo_shows_what_the_federation_gains(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = hanse("demo", "--workspace", str(folder), "--json", seconds=400)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rounds"] == 40
    assert set(told["sites"]) == {"cleveland", "hungary", "switzerland", "va-long-beach"}
    for site in told["sites"].values():
        assert 2.9 < site["epsilon"] <= 3.0
        assert (site["delta"], site["rounds"]) == (1e-5, 40)
    # Privacy costs a few points at most, on one split and with one draw of the noise.
    assert told["accuracy"] > told["accuracy_without_privacy"] - 0.06
    assert told["accuracy"] > min(told["accuracy_alone"].values()) + 0.05
    assert 0.8 < told["auc"] < 1
    assert told["bytes_up"] > 40 * 4 * 400
    assert told["bytes_down"] > 40 * 4 * 400
    report = Path(told["report"]).read_text()
    assert "federation, private" in report
    assert "va-long-beach" in report


def test_the_demo_touches_no_folder_of_anybody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    done = hanse("demo", "--workspace", str(tmp_path), "--json")
    assert done.returncode == 14
    assert json.loads(done.stdout)["error"] == "workspace"
    assert (tmp_path / "thesis.txt").exists()

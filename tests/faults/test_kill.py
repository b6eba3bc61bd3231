"""kill -9 in the middle of a round: the same model, and nothing charged twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history

from tests.hospitals import Hospitals, wait_until

ROUNDS = 20


def run(folder: Path, *, private: bool, victim: str | None) -> Hospitals:
    """Run a federation to its end, killing ``victim`` while replies are awaited."""
    with Hospitals(folder, rounds=ROUNDS, private=private) as hospitals:
        hospitals.start_sites()
        hospitals.start_server()
        if victim is not None:
            hospitals.await_round(2)
            # Hungary stands still, so that the round is under way when the victim is killed.
            hospitals.pause("hungary")
            wait_until(lambda: hospitals.awaited() == ["hungary"], 30)
            hospitals.kill(victim)
            hospitals.resume("hungary")
            if victim == "server":
                hospitals.start_server()
            else:
                hospitals.start_sites(victim)
        assert hospitals.await_end("server") == 0, hospitals.log("server")
        for name in hospitals.federation.sites:
            hospitals.stop(name)
        return hospitals


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    hospitals = run(tmp_path_factory.mktemp("whole") / "demo", private=False, victim=None)
    return load_model(hospitals.workspace / "models" / "last.safetensors")


@pytest.mark.parametrize("victim", ["server", "cleveland", "hungary"])
def test_the_model_is_that_of_an_undisturbed_run(
    victim: str, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    hospitals = run(tmp_path / "demo", private=False, victim=victim)
    model = load_model(hospitals.workspace / "models" / "last.safetensors")
    for name, weight in undisturbed.items():
        assert torch.equal(weight, model[name]), name
    rounds = [line["round"] for line in read_history(hospitals.workspace)]
    assert rounds == list(range(1, ROUNDS + 1))


def test_a_killed_server_has_no_round_charged_twice(tmp_path: Path) -> None:
    hospitals = run(tmp_path / "demo", private=True, victim="server")
    for name in hospitals.federation.sites:
        entries = hospitals.ledger(name)
        assert [entry["round"] for entry in entries] == list(range(1, ROUNDS + 1)), name


def test_a_killed_site_never_has_a_round_charged_too_little(tmp_path: Path) -> None:
    hospitals = run(tmp_path / "demo", private=True, victim="cleveland")
    rounds = [entry["round"] for entry in hospitals.ledger("cleveland")]
    assert set(rounds) == set(range(1, ROUNDS + 1))
    assert len(rounds) <= ROUNDS + 1  # the round under way may count twice after a crash

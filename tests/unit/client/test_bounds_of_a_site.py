"""What a server can have a site hold, and in which order it may ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hanse.errors import PolicyError, TaskError
from hanse.examples import example
from hanse.job import load_job
from hanse.task import Examples, NoOptions, Task, load_task
from hanse_client import outbox as outboxes
from hanse_client.ledger import Ledger
from hanse_client.outbox import Outbox
from hanse_client.turns import MOST_RUNS, Turns
from hanse_client.weights import task_bytes
from torch import Tensor, nn

from tests.harbour import Harbour, job


class Odd(Task[NoOptions]):
    """A model that is made as its field says."""

    make: Callable[[], nn.Module]

    def model(self) -> nn.Module:
        return type(self).make()

    def read(self, source: Path) -> Examples:
        raise AssertionError("nothing is read here")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {}


def odd(make: Callable[[], nn.Module]) -> Any:
    return type("Odd", (Odd,), {"make": staticmethod(make)})(NoOptions())


def test_a_model_is_measured_without_memory() -> None:
    assert task_bytes(odd(lambda: nn.Linear(10, 10))) == 440
    assert task_bytes(odd(lambda: nn.Linear(10**6, 10**6))) == 4 * (10**12 + 10**6)


def test_a_model_that_reads_values_is_measured_when_it_is_there() -> None:
    assert task_bytes(odd(lambda: nn.Linear(1, int(torch.tensor(3).item())))) is None


def test_a_model_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(TaskError, match="no model of these options"):
        task_bytes(odd(lambda: nn.Linear(2**62, 2**62)))


def test_measuring_draws_no_randomness() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    task_bytes(odd(lambda: nn.Linear(10, 10)))
    assert torch.equal(before, torch.get_rng_state())


def test_every_example_can_be_measured() -> None:
    asked = load_job(example("heart") / "job.toml")
    assert task_bytes(load_task(asked.task.name, asked.task.options))


def test_rounds_come_in_their_order_run_by_run() -> None:
    turns = Turns(Ledger(None))
    turns.took(1, 5)
    turns.check(1, 5)
    turns.check(1, 6)
    turns.check(2, 1)
    with pytest.raises(PolicyError, match="round 4 came after round 5"):
        turns.check(1, 4)
    for run in range(2, MOST_RUNS + 10):
        turns.took(run, 1)
    assert len(turns._last) == MOST_RUNS


def test_the_order_outlives_the_client(harbour: Callable[..., Harbour]) -> None:
    here = harbour()
    here.send(job(privacy={"noise_multiplier": 60.0}), number=3)
    again = Turns(here.ledger)
    with pytest.raises(PolicyError, match="after round 3"):
        again.check(1, 2)


def test_what_was_settled_is_remembered_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "SETTLED_KEPT", 3)
    box = Outbox(tmp_path / "outbox.sqlite")
    for name in "abcde":
        box.put(name, b"header", [b"body"])
        box.forget([name, "never"])
    box.close()
    again = Outbox(tmp_path / "outbox.sqlite")
    assert [name for name in ("a", "b", "c", "d", "e", "never") if again.was_settled(name)] == [
        "c",
        "d",
        "e",
    ]
    again.close()

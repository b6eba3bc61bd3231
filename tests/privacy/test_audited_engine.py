"""The empirical audit passes the engine as it is; `test_planted_bugs.py` shows what it catches."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hanse.job import Job
from hanse_client.canaries.audit import audit
from hanse_client.canaries.verdict import Audit
from hanse_client.privacy.settings import BackendName

from tests.privacy.planting import repeatable

BATCHED = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "clipping_norm": 0.5}
WHOLE = {"noise_multiplier": 25.0, "sampling_rate": 1.0, "clipping_norm": 2.0}


def audited(
    patch: pytest.MonkeyPatch,
    privacy: dict[str, float],
    *,
    steps: int = 25,
    backend: BackendName = "auto",
) -> Audit:
    """An audit of four rounds, with few canaries and a wide band, to be quick."""
    repeatable(patch)
    job = Job.model_validate(
        {
            "name": "audited",
            "rounds": 4,
            "task": {"name": "x:Y"},
            "training": {"steps": steps, "batch_size": 50},
            "privacy": privacy,
        }
    )
    return audit(job, canaries=400, simulations=2000, backend=backend, device=torch.device("cpu"))


@pytest.mark.parametrize("backend", get_args(BackendName))
def test_the_engine_passes_by_each_backend(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audited(monkeypatch, BATCHED, backend=backend)
    assert found.faults == ()
    assert backend in ("auto", found.backend)


def test_the_engine_passes_with_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited(monkeypatch, BATCHED)
    assert found.faults == ()
    assert 0.0 < found.at_least < found.claimed


def test_the_engine_passes_with_all_records_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert audited(monkeypatch, WHOLE, steps=10).faults == ()

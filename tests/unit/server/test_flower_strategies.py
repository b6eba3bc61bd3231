"""The adapter for Flower's strategies: what they are told of, and what they wait for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import strategy_utils
from hanse.errors import StrategyError
from hanse.flower import (
    ARRAYS,
    METRICS,
    WEIGHT,
    Envelope,
    become_server_app,
    open_envelope,
    to_record,
)
from hanse.job import Job
from hanse_server.strategies import make_strategy
from hanse_server.strategies.flower import OnWeights

MODEL = {"w": torch.zeros(2)}


class Sites:
    """A grid with so many sites."""

    def __init__(self, count: int) -> None:
        become_server_app(1)
        self._nodes = range(10, 10 + count)

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)


def strategy(name: str, **choice: Any) -> OnWeights:
    job = Job.model_validate(
        {
            "name": "line",
            "rounds": 3,
            "task": {"name": "x:Y"},
            "training": {"steps": 1},
            "privacy": {"mechanism": "none"},
            "strategy": {"name": name, **choice},
        }
    )
    made = make_strategy(job)
    assert isinstance(made, OnWeights)
    return made


def asked(strategy: OnWeights, phase: str, sites: int) -> int:
    configure = getattr(strategy, f"configure_{phase}")
    return len(list(configure(1, to_record(MODEL), ConfigRecord(), Sites(sites))))


def replies(count: int) -> list[Message]:
    return [
        open_envelope(
            Envelope(
                message_id="", run_id=1, src_node_id=10 + i, dst_node_id=1,
                message_type=MessageType.TRAIN,
            ),
            RecordDict(
                {ARRAYS: to_record({"w": torch.ones(2)}), METRICS: MetricRecord({WEIGHT: 1.0})}
            ),
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["FedAdam", "FedAvgM", "Krum"])
def test_a_missed_quorum_leaves_no_trace(name: str) -> None:
    judged = strategy(name, quorum=3)
    asked(judged, "train", 4)
    before = judged.state()
    assert judged.aggregate_train(1, replies(2)) == (None, None)
    assert judged.state().keys() == before.keys()
    arrays, _ = judged.aggregate_train(2, replies(3))
    assert arrays is not None


def test_no_strategy_waits_in_silence_for_a_site_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError(f"it sleeps for {seconds} s until a site comes back")

    monkeypatch.setattr(strategy_utils, "sleep", wait)
    choosy = strategy("FedAvg", quorum=3, available=4)
    assert asked(choosy, "train", 4) == 4
    assert asked(choosy, "evaluate", 2) == 2
    assert asked(choosy, "evaluate", 0) == 0


@pytest.mark.parametrize(("hostile", "needed"), [(0, 3), (1, 7), (2, 11)])
def test_bulyan_is_asked_for_no_more_than_it_withstands(hostile: int, needed: int) -> None:
    options = {"num_malicious_nodes": hostile}
    strategy("Bulyan", quorum=needed, options=options)
    with pytest.raises(StrategyError, match=f"among {needed} results or more"):
        strategy("Bulyan", quorum=needed - 1, options=options)

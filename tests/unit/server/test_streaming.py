"""Streaming FedAvg: the mean, the server's step, the average, and memory."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator

import pytest
import torch
from flwr.app import Error, Message, MessageType, MetricRecord, RecordDict
from hanse.flower import (
    ARRAYS,
    METRICS,
    WEIGHT,
    Envelope,
    become_server_app,
    open_envelope,
    to_record,
    to_tensors,
)
from hanse_server.strategies.streaming import StreamingFedAvg


def reply(update: dict[str, torch.Tensor], weight: float, **metrics: float) -> Message:
    content = RecordDict(
        {ARRAYS: to_record(update), METRICS: MetricRecord({WEIGHT: weight, **metrics})}
    )
    return open_envelope(envelope(), content)


def envelope() -> Envelope:
    return Envelope(
        message_id="", run_id=1, src_node_id=2, dst_node_id=1, message_type=MessageType.TRAIN
    )


class FakeGrid:
    def __init__(self, sites: int) -> None:
        become_server_app(1)
        self._sites = range(10, 10 + sites)

    def get_node_ids(self) -> list[int]:
        return list(self._sites)


def begin(
    strategy: StreamingFedAvg, model: dict[str, torch.Tensor], number: int = 1
) -> list[Message]:
    from flwr.app import ConfigRecord

    grid = FakeGrid(4)
    return list(strategy.configure_train(number, to_record(model), ConfigRecord(), grid))  # type: ignore[arg-type]


def test_the_model_moves_by_the_weighted_mean_of_the_updates() -> None:
    strategy = StreamingFedAvg()
    model = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    begin(strategy, model)
    updates = [
        reply({"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(2)}, 1.0, loss=1.0),
        reply({"w": torch.tensor([4.0, 8.0]), "n": torch.tensor(4)}, 3.0, loss=2.0),
    ]
    arrays, metrics = strategy.aggregate_train(1, updates)
    assert arrays is not None
    assert metrics is not None
    after = to_tensors(arrays)
    torch.testing.assert_close(after["w"], torch.tensor([1.0 + 3.25, 2.0 + 6.0]))
    assert after["n"].item() == 6  # 3 + (2 + 12) / 4 = 6.5, rounded to even
    assert after["n"].dtype == torch.int64
    assert metrics["loss"] == pytest.approx(1.75)


def test_errors_are_left_out_and_none_at_all_leaves_the_model() -> None:
    strategy = StreamingFedAvg()
    begin(strategy, {"w": torch.zeros(1)})
    failed = open_envelope(envelope(), Error(40, "policy"))
    assert strategy.aggregate_train(1, [failed]) == (None, None)


def test_a_missed_quorum_leaves_no_trace() -> None:
    model = {"w": torch.zeros(2)}
    strategy = StreamingFedAvg(quorum=2, momentum=0.9, average_from=1)
    begin(strategy, model)
    before = strategy.state()
    arrays, metrics = strategy.aggregate_train(1, [reply({"w": torch.ones(2)}, 1.0, loss=0.5)])
    assert arrays is None
    assert metrics == MetricRecord({"loss": 0.5})
    assert strategy.state() == before
    assert torch.equal(to_tensors(strategy.released(to_record(model)))["w"], model["w"])


def test_the_order_of_arrival_does_not_show() -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [torch.randn(1000, generator=generator) for _ in range(5)]
    models = []
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        strategy = StreamingFedAvg()
        begin(strategy, {"w": torch.zeros(1000)})
        arrays, _ = strategy.aggregate_train(1, [reply({"w": updates[i]}, 1.0 + i) for i in order])
        assert arrays is not None
        models.append(to_tensors(arrays)["w"])
    for model in models[1:]:
        torch.testing.assert_close(model, models[0], rtol=1e-7, atol=0)


def test_momentum_follows_its_closed_form() -> None:
    strategy = StreamingFedAvg(lr=0.5, momentum=0.9)
    model, velocity = torch.zeros(1), 0.0
    arrays = to_record({"w": model})
    for number in range(1, 5):
        begin(strategy, to_tensors(arrays), number)
        stepped, _ = strategy.aggregate_train(number, [reply({"w": torch.ones(1)}, 1.0)])
        assert stepped is not None
        arrays = stepped
        velocity = 0.9 * velocity + 1.0
        model = model + 0.5 * velocity
    torch.testing.assert_close(to_tensors(arrays)["w"], model)


def test_the_released_model_is_the_mean_of_the_iterates() -> None:
    strategy = StreamingFedAvg(average_from=2)
    arrays = to_record({"w": torch.zeros(1)})
    iterates = []
    for number in range(1, 5):
        begin(strategy, to_tensors(arrays), number)
        stepped, _ = strategy.aggregate_train(number, [reply({"w": torch.ones(1) * number}, 1.0)])
        assert stepped is not None
        arrays = stepped
        iterates.append(to_tensors(arrays)["w"])
        if number == 1:
            torch.testing.assert_close(to_tensors(strategy.released(arrays))["w"], iterates[0])
    expected = torch.stack(iterates[1:]).mean(0)
    torch.testing.assert_close(to_tensors(strategy.released(arrays))["w"], expected)
    torch.testing.assert_close(to_tensors(arrays)["w"], iterates[-1])


def test_a_restored_strategy_goes_on_as_if_nothing_had_happened() -> None:
    def run(interrupted: bool) -> torch.Tensor:
        strategy = StreamingFedAvg(momentum=0.9, average_from=1)
        arrays = to_record({"w": torch.zeros(3)})
        for number in range(1, 6):
            if interrupted and number == 3:
                state, strategy = strategy.state(), StreamingFedAvg(momentum=0.9, average_from=1)
                strategy.restore(state)
            begin(strategy, to_tensors(arrays), number)
            update = {"w": torch.tensor([1.0, 2.0, 3.0]) / number}
            stepped, _ = strategy.aggregate_train(number, [reply(update, 1.0)])
            assert stepped is not None
            arrays = stepped
        return to_tensors(strategy.released(arrays))["w"]

    assert torch.equal(run(interrupted=True), run(interrupted=False))


def test_replies_are_dropped_as_they_are_folded() -> None:
    strategy = StreamingFedAvg()
    begin(strategy, {"w": torch.zeros(10)})
    alive: list[weakref.ref[Message]] = []
    most = 0

    def replies() -> Iterator[Message]:
        nonlocal most
        for _ in range(20):
            each = reply({"w": torch.ones(10)}, 1.0)
            alive.append(weakref.ref(each))
            yield each
            del each
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))

    strategy.aggregate_train(1, replies())
    assert most <= 1


def test_sites_are_chosen_by_seed_and_round() -> None:
    def chosen(seed: int, number: int) -> list[int]:
        strategy = StreamingFedAvg(fraction=0.5, quorum=2, seed=seed)
        messages = begin(strategy, {"w": torch.zeros(1)}, number)
        return [message.metadata.dst_node_id for message in messages]

    assert len(chosen(1, 1)) == 2
    assert chosen(1, 1) == chosen(1, 1)
    assert len({tuple(chosen(seed, 1)) for seed in range(20)}) > 1
    assert len({tuple(chosen(1, number)) for number in range(20)}) > 1


def test_all_messages_share_one_content_so_that_it_is_encoded_once() -> None:
    messages = begin(StreamingFedAvg(), {"w": torch.zeros(1)})
    assert len(messages) == 4
    assert len({id(message.content) for message in messages}) == 1

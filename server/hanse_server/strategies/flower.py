"""Flower's own strategies beside Hanse's: sites send updates, Flower's strategies want weights."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from hanse.errors import StrategyError
from hanse.flower import (
    ARRAYS,
    METRICS,
    WEIGHT,
    AppExitException,
    only_arrays,
    to_metrics,
    to_record,
    to_tensors,
)
from torch import Tensor

from hanse_server.strategies.average import only_metrics


class OnWeights(Strategy):
    """Runs one of Flower's strategies on replies that hold updates.

    Adds the global model to each update before the inner strategy sees it, gives it the replies
    in the order of their sites (Flower's strategies sum in float32, where order shows), and
    keeps its choice of sites to the job's seed.

    Args:
        inner: the strategy of Flower.
        seed: of the choice of sites, with the round.
        quorum: results below which the inner strategy is not told of a round at all, so that
            its state holds nothing of updates that the model never took.
    """

    def __init__(self, inner: Strategy, *, seed: int, quorum: int = 1) -> None:
        self._inner = inner
        self._seed = seed
        self._quorum = quorum
        self._model: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's messages."""
        self._model = to_tensors(arrays)
        self._refuse_bfloat16()
        with _seeded(f"{self._seed}:{server_round}"):
            return list(self._inner.configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's aggregate, cast back to the model's own dtypes."""
        weights = [self._as_weights(reply) for reply in _in_order(replies)]
        if sum(reply.has_content() for reply in weights) < self._quorum:
            return None, None
        with _as_strategy_error(self._inner):
            arrays, metrics = self._inner.aggregate_train(server_round, _same_metrics(weights))
        if arrays is None:
            return None, metrics
        tensors = to_tensors(arrays)
        return to_record(
            {name: tensors[name].to(before.dtype) for name, before in self._model.items()}
        ), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's messages; none where no site is there to be asked."""
        if not list(grid.get_node_ids()):
            return []
        with _seeded(f"{self._seed}:{server_round}:evaluate"):
            return list(self._inner.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The inner strategy's aggregate of the metrics that all sites released."""
        with _as_strategy_error(self._inner):
            return self._inner.aggregate_evaluate(server_round, _same_metrics(_in_order(replies)))

    def summary(self) -> None:
        """The inner strategy's summary."""
        self._inner.summary()

    def state(self) -> dict[str, Tensor]:
        """The arrays that the inner strategy carries from round to round."""
        state: dict[str, Tensor] = {}
        for attribute, value in vars(self._inner).items():
            if isinstance(value, dict | list) and value:
                items = value.items() if isinstance(value, dict) else enumerate(value)
                arrays = {str(key): array for key, array in items if isinstance(array, np.ndarray)}
                kind = "dict" if isinstance(value, dict) else "list"
                for key, array in arrays.items():
                    state[f"{attribute}/{kind}/{key}"] = torch.from_numpy(np.array(array))
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        carried: dict[str, Any] = {}
        for path, tensor in state.items():
            attribute, kind, key = path.split("/", 2)
            into = carried.setdefault(attribute, {} if kind == "dict" else [])
            if kind == "dict":
                into[key] = tensor.numpy()
            else:
                into.append((int(key), tensor.numpy()))
        for attribute, value in carried.items():
            if isinstance(value, list):
                value = [array for _, array in sorted(value, key=lambda pair: pair[0])]
            setattr(self._inner, attribute, value)

    def _as_weights(self, reply: Message) -> Message:
        if reply.has_error():
            return reply
        update = to_tensors(only_arrays(reply.content))
        weights = {
            name: before + update[name] if name in update else before
            for name, before in self._model.items()
        }
        metrics = to_metrics(only_metrics(reply.content))
        reply.content = RecordDict({ARRAYS: to_record(weights), METRICS: metrics})
        return reply

    def _refuse_bfloat16(self) -> None:
        narrow = [name for name, t in self._model.items() if t.dtype == torch.bfloat16]
        if narrow:
            raise StrategyError(
                f"{type(self._inner).__name__} works on numpy arrays, which have no bfloat16 "
                f"(first such weight: {narrow[0]})",
                remedy='Use strategy.name = "StreamingFedAvg", or a float32 model.',
            )


def _in_order(replies: Iterable[Message]) -> list[Message]:
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def _same_metrics(replies: list[Message]) -> list[Message]:
    """Keep the metrics that every result carries: Flower's strategies refuse ragged ones."""
    results = [reply for reply in replies if reply.has_content()]
    metrics = [only_metrics(reply.content) for reply in results]
    shared = set.intersection(*(set(each) for each in metrics)) if metrics else set()
    for reply, each in zip(results, metrics, strict=True):
        kept = to_metrics({name: each[name] for name in sorted(shared | {WEIGHT})})
        reply.content = RecordDict({METRICS: kept, **reply.content.array_records})
    return replies


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    # Flower samples sites from Python's global generator.
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextmanager
def _as_strategy_error(inner: Strategy) -> Iterator[None]:
    try:
        yield
    except (AppExitException, ValueError, IndexError, ZeroDivisionError) as error:
        raise StrategyError(f"{type(inner).__name__} cannot aggregate: {error}") from error

"""Aggregation strategies: streaming ones of Hanse, and the adapter for those of Flower."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy
from hanse.aggregation import STREAMING
from hanse.errors import StrategyError
from hanse.job import Job
from torch import Tensor

from hanse_server.strategies.flower import OnWeights
from hanse_server.strategies.streaming import StreamingFedAvg

FLOWER = (
    "FedAvg",
    "FedAvgM",
    "FedAdam",
    "FedYogi",
    "FedAdagrad",
    "FedProx",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "MultiKrum",
    "Bulyan",
    "QFedAvg",
)
"""The strategies of Flower that go by their own name."""


@runtime_checkable
class Resumable(Protocol):
    """A strategy that carries state from round to round, and can be restored from it."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep, as named tensors."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""


def make_strategy(job: Job) -> Strategy:
    """The strategy that a job names: Hanse's, one of Flower's, or ``package.module:Class``.

    A class of one's own is taken as Flower's are: it gets weights, and the options as keywords.

    Raises:
        StrategyError: if there is none of that name, or it does not take the options.
    """
    choice = job.strategy
    # A secure round ends in one reply for all its sites, or in none.
    replies = 1 if job.secure_aggregation.enabled else choice.quorum
    try:
        if choice.name in STREAMING:
            options: dict[str, Any] = dict(choice.options)
            return StreamingFedAvg(
                fraction=choice.fraction,
                quorum=choice.quorum,
                least_replies=replies,
                goal=choice.goal,
                staleness_exponent=choice.staleness_exponent,
                seed=job.seed,
                **options,
            )
        return OnWeights(_flower_strategy(job), seed=job.seed, quorum=replies)
    except TypeError as mismatch:
        raise StrategyError(f"strategy.options: {mismatch}") from mismatch


def _flower_strategy(job: Job) -> Strategy:
    choice = job.strategy
    kind = _strategy_type(choice.name)
    _check_enough(job)
    # The round loop has waited for as many sites as a round needs, and shown it. Flower would
    # wait again, in silence: for one that left after training, until it comes back.
    strategy: Strategy = kind(
        fraction_train=choice.fraction,
        min_train_nodes=choice.quorum,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        **choice.options,
    )
    return strategy


def _check_enough(job: Job) -> None:
    """Refuse a quorum with which Flower's Bulyan would make no model.

    It needs 4 f + 3 results to withstand f hostile ones (El Mhamdi et al. 2018, arXiv 1802.07927).
    """
    choice = job.strategy
    hostile = choice.options.get("num_malicious_nodes", 0)
    if choice.name != "Bulyan" or not isinstance(hostile, int):
        return
    needed = 4 * hostile + 3
    if choice.quorum < needed:
        raise StrategyError(
            f"Bulyan withstands num_malicious_nodes = {hostile} among {needed} results or more, "
            f"and strategy.quorum = {choice.quorum}",
            remedy=f"Set strategy.quorum to {needed} at least, or lower num_malicious_nodes.",
        )


def _strategy_type(name: str) -> type[Any]:
    if name in FLOWER:
        return getattr(flower_strategies, name)  # type: ignore[no-any-return]
    module_name, _, class_name = name.partition(":")
    if not class_name:
        raise StrategyError(
            f"strategy.name = {name!r}: no such strategy",
            remedy=f"Choose one of {', '.join(STREAMING + FLOWER)}, or package.module:Class.",
        )
    try:
        return getattr(importlib.import_module(module_name), class_name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as missing:
        raise StrategyError(f"strategy.name = {name!r}: cannot be loaded: {missing}") from missing


def released_model(strategy: Strategy, arrays: ArrayRecord) -> ArrayRecord:
    """The model that a strategy lets be judged and kept; mostly the one it trains on."""
    return strategy.released(arrays) if isinstance(strategy, StreamingFedAvg) else arrays

"""Federated averaging that holds one running sum, whatever the number of sites."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from hanse.elements import Numbers, elements_of, numbers_of, pieces_of
from hanse.flower import (
    ARRAYS,
    CONFIG,
    ROUND,
    filled,
    only_arrays,
    read_tensors,
    size_of,
    to_array,
    to_record,
)
from hanse.threads import of_each
from torch import Tensor

from hanse_server.grid import HanseGrid
from hanse_server.strategies.average import RunningMetrics
from hanse_server.strategies.sums import WeightedSum, Wide, write_wide

Tensors = dict[str, Tensor]


class StreamingFedAvg(Strategy):
    """FedAvg over updates (McMahan et al. 2017), folded as they arrive.

    The server's step is ``velocity = momentum * velocity + mean update`` and ``model += lr *
    velocity`` (FedAvgM, Hsu et al. 2019). With ``average_from = k > 0`` the model that is
    released is the mean of the iterates from round k on (Polyak and Juditsky 1992); training
    itself goes on from the last iterate.

    Args:
        fraction: share of the connected sites that a round asks, at least ``quorum`` of them.
        quorum: sites that a round needs.
        least_replies: replies that a round needs, where one stands for many; the quorum if None.
        goal: results with which a round closes.
        staleness_exponent: a, where an update that is s rounds late counts ``(1 + s) ** -a``.
        seed: of the choice of sites, with the round.
        lr: the server's learning rate.
        momentum: of the server's step, 0 for none.
        average_from: first round whose iterate counts for the released model, 0 for no average.
    """

    def __init__(
        self,
        *,
        fraction: float = 1.0,
        quorum: int = 1,
        least_replies: int | None = None,
        goal: int | None = None,
        staleness_exponent: float = 0.5,
        seed: int = 0,
        lr: float = 1.0,
        momentum: float = 0.0,
        average_from: int = 0,
    ) -> None:
        self._fraction = fraction
        self._quorum = quorum
        self._least_replies = quorum if least_replies is None else least_replies
        self._goal = goal or 0
        self._staleness_exponent = staleness_exponent
        self._seed = seed
        self._lr = lr
        self._momentum = momentum
        self._average_from = average_from
        self._arrays = ArrayRecord()
        self._velocity: Tensors = {}
        self._average: Tensors = {}
        self._averaged = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message to each chosen site, all of the same content.

        Sites that are at work for an earlier round count among those that the round takes.
        """
        self._arrays = arrays
        there, idle = list(grid.get_node_ids()), _idle(grid)
        size = max(self._quorum, self._goal, round(self._fraction * len(there)))
        size = min(len(idle), size - (len(there) - len(idle)))
        choice = random.Random(f"{self._seed}:{server_round}")  # noqa: S311 - not a secret
        chosen = choice.sample(idle, max(0, size))
        return _messages(server_round, arrays, config, chosen, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold each update as it arrives, then take the server's step.

        With too few results there is no step: the model's next rounds must not
        carry the momentum of updates that it never took.
        """
        updates, metrics, results = WeightedSum(), RunningMetrics(), 0
        for reply in replies:
            if reply.has_error():
                continue
            weight = metrics.fold(reply.content)
            discount = self._discount(server_round, reply)
            updates.fold(only_arrays(reply.content), weight, discount)
            results += 1
        if results < self._least_replies:
            return None, metrics.mean()
        self._arrays = self._step(updates)
        self._fold_iterate(server_round)
        return self._arrays, metrics.mean()

    def _discount(self, server_round: int, reply: Message) -> float:
        group = reply.metadata.group_id
        staleness = max(0, server_round - int(group)) if group.isdecimal() else 0
        return float((1.0 + staleness) ** -self._staleness_exponent)

    def _step(self, updates: WeightedSum) -> ArrayRecord:
        """The model after the server's step; what is used up on the way is freed on the way."""
        size = sum(map(size_of, self._arrays.values()))
        stepped = of_each(lambda name: self._stepped(name, updates), list(self._arrays), size)
        return filled(ArrayRecord, dict(zip(self._arrays, stepped, strict=True)))

    def _stepped(self, name: str, updates: WeightedSum) -> Array:
        """One array after the step."""
        array = self._arrays[name]
        sums = updates.take(name)
        if sums is None:
            return array
        before = elements_of(array)
        after = torch.empty(before.shape, dtype=before.dtype)
        if self._momentum:
            steps = self._with_momentum(name, before.shape, sums, updates.weight)
            factor = self._lr
        else:
            steps, factor = sums, self._lr / updates.weight
        # All in one pass: a model is larger than any cache.
        write_wide(
            after, (_moved(*each, factor) for each in zip(before.pieces(), steps, strict=True))
        )
        return to_array(after, adopt=True)

    def _with_momentum(
        self, name: str, shape: tuple[int, ...], sums: Iterator[Wide], weight: float
    ) -> Iterator[Wide]:
        """The means of sums with the velocity so far; they are the velocity from now on.

        It is a new tensor: the one before may still be to be written into a checkpoint.
        """
        before = self._velocity.get(name)
        velocity = self._velocity[name] = torch.empty(shape, dtype=torch.float64)
        past = repeat(None) if before is None else pieces_of(numbers_of(before))
        for step, now, each in zip(sums, pieces_of(numbers_of(velocity)), past, strict=False):
            step /= weight
            if each is not None:
                step += each * self._momentum
            now[:] = step
            yield step

    def _fold_iterate(self, server_round: int) -> None:
        if not 0 < self._average_from <= server_round:
            return
        self._averaged += 1
        for name, tensor in read_tensors(self._arrays).items():
            iterate = tensor.to(torch.float64)
            before = self._average.get(name, iterate)
            self._average[name] = before + (iterate - before) / self._averaged

    def released(self, arrays: ArrayRecord) -> ArrayRecord:
        """The model to judge and to keep: the average of the iterates, once there is one."""
        if not self._average:
            return arrays
        dtypes = {name: tensor.dtype for name, tensor in read_tensors(arrays).items()}
        return to_record(
            {name: _cast(self._average[name], dtype) for name, dtype in dtypes.items()}
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message to every connected site that is not at work."""
        return _messages(server_round, arrays, config, _idle(grid), MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The weighted mean of each metric over the sites that released it."""
        metrics = RunningMetrics()
        for reply in replies:
            if reply.has_content():
                metrics.fold(reply.content)
        return metrics.mean()

    def summary(self) -> None:
        """Flower asks for it; the job says it all."""

    def state(self) -> Tensors:
        """What a checkpoint must keep, as named tensors."""
        state = {f"velocity/{name}": tensor for name, tensor in self._velocity.items()}
        state |= {f"average/{name}": tensor for name, tensor in self._average.items()}
        return state | {"averaged": torch.tensor(self._averaged)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self._averaged = int(state["averaged"])
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if kind == "velocity":
                self._velocity[name] = tensor
            elif kind == "average":
                self._average[name] = tensor


def _idle(grid: Grid) -> list[int]:
    """The sites that are there and owe nothing, ascending."""
    working = grid.working() if isinstance(grid, HanseGrid) else {}
    there = grid.get_node_ids()
    return sorted(set(there) - set(working)) if working else sorted(there)


def _moved(before: Numbers, step: Wide, factor: float) -> Wide:
    """``before + factor * step``, where the step was."""
    if factor != 1.0:
        step *= factor
    step += before
    return step


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if dtype.is_floating_point else tensor.round().to(dtype)


def _messages(
    server_round: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    sites: Iterable[int],
    message_type: str,
) -> list[Message]:
    config[ROUND] = server_round
    # One RecordDict for all: the link encodes the same object only once.
    content = filled(RecordDict, {ARRAYS: arrays, CONFIG: config})
    group = str(server_round)
    return [Message(content, site, message_type, group_id=group) for site in sites]

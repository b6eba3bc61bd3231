"""Federated averaging that holds one running sum, whatever the number of sites."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
from hanse.flower import (
    ARRAYS,
    CONFIG,
    ROUND,
    filled,
    only_arrays,
    read_tensor,
    read_tensors,
    to_array,
    to_record,
)
from hanse.slices import slices
from torch import Tensor

from hanse_server.grid import HanseGrid
from hanse_server.strategies.average import RunningMetrics

Tensors = dict[str, Tensor]


@dataclass
class WeightedSum:
    """Updates folded one by one into a float64 sum; the memory of one model.

    float64, so that the order in which updates arrive shows at most in the last bit of a
    float32.
    """

    total: Tensors = field(default_factory=dict)
    weight: float = 0.0

    def fold(self, update: ArrayRecord, weight: float, discount: float = 1.0) -> None:
        """Add ``weight`` times ``update``, times ``discount`` for its age.

        One array after the other is looked at, so that no more of a spooled update is in memory.

        A discount makes the mean smaller, as in FedBuff (Nguyen et al. 2022): were it divided out
        again, one late update alone would count in full.
        """
        factor = weight * discount
        for name, array in update.items():
            tensor = read_tensor(array)
            if name not in self.total:
                self.total[name] = torch.empty(tensor.shape, dtype=torch.float64)
                for total, part in slices(self.total[name], tensor.contiguous()):
                    total.copy_(part).mul_(factor)
                continue
            for total, part in slices(self.total[name], tensor.contiguous()):
                total.add_(part, alpha=factor)
        self.weight += weight

    def take(self, name: str) -> Tensor | None:
        """The weighted sum of one tensor, in float64, which is held here no more.

        None if no update had it.
        """
        return self.total.pop(name, None)


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
        stepped = ArrayRecord()
        for name, array in self._arrays.items():
            total = updates.take(name)
            if total is None:
                stepped[name] = array
            else:
                stepped[name] = self._stepped(name, read_tensor(array), total, updates.weight)
        return stepped

    def _stepped(self, name: str, before: Tensor, total: Tensor, weight: float) -> Array:
        """One tensor after the step; ``total`` becomes the velocity, the mean without momentum."""
        after = torch.empty(before.shape, dtype=before.dtype)
        past = [self._velocity[name]] if self._momentum and name in self._velocity else []
        # All in one pass: a model is larger than any cache.
        for into, old, step, *velocity in slices(after, before.contiguous(), total, *past):
            step.div_(weight)
            for each in velocity:
                step.add_(each, alpha=self._momentum)
            into.copy_(_cast(old.to(torch.float64).add_(step, alpha=self._lr), before.dtype))
        if self._momentum:
            self._velocity[name] = total
        return to_array(after, adopt=True)

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

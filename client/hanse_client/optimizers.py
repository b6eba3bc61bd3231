"""Local optimisers: torch's own steps, without what torch.optim wraps around each of them.

They work on tensors of any shape, number by number, so that the weights of many sites that are
stacked in one tensor take the same steps as each site's alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from hanse.job import Optimizer
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

_BETAS, _EPSILON, _ALPHA = (0.9, 0.999), 1e-8, 0.99  # the defaults of torch.optim


class LocalOptimizer:
    """A fresh optimiser of some tensors.

    Args:
        parameters: whose ``grad`` each step takes; one without a gradient is left as it is.
        lr: learning rate of the round, in place of the settings' own.
    """

    def __init__(self, settings: Optimizer, parameters: Iterable[Tensor], lr: float) -> None:
        self._settings = settings
        self._parameters = list(parameters)
        self._lr = lr
        self._state: defaultdict[str, dict[int, Tensor | None]] = defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; they are always set to None."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """One step along the parameters' gradients."""
        self.advance(self._parameters, [parameter.grad for parameter in self._parameters])

    @torch.no_grad()
    def advance(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Change ``parameters`` in place by one step; they are the same ones at each call."""
        learned = [index for index, gradient in enumerate(gradients) if gradient is not None]
        if not learned:
            return
        own = [parameters[index] for index in learned]
        along = [gradient for gradient in gradients if gradient is not None]
        match self._settings.name:
            case "sgd":
                self._sgd(learned, own, along)
            case "adam" | "adamw":
                self._adam(learned, own, along)
            case "rmsprop":
                self._rmsprop(learned, own, along)

    def narrow(self, rows: int) -> None:
        """Go on with the first rows of stacked parameters alone."""
        for name, state in self._state.items():
            if name != "steps":
                for index, tensor in state.items():
                    state[index] = None if tensor is None else tensor[:rows]

    def _sgd(self, learned: list[int], own: list[Tensor], along: list[Tensor]) -> None:
        buffers = self._state["momentum"]
        before = [buffers.get(index) for index in learned]
        sgd(
            own,
            along,
            before,
            foreach=_foreach(own),
            fused=False,
            weight_decay=self._settings.weight_decay,
            momentum=self._settings.momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self._settings.momentum:
            buffers.update(zip(learned, before, strict=True))

    def _adam(self, learned: list[int], own: list[Tensor], along: list[Tensor]) -> None:
        adam(
            own,
            along,
            self._zeros("mean", learned, own),
            self._zeros("square", learned, own),
            [],
            self._steps(learned),
            foreach=_foreach(own),
            fused=False,
            decoupled_weight_decay=self._settings.name == "adamw",
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=self._lr,
            weight_decay=self._settings.weight_decay,
            eps=_EPSILON,
            maximize=False,
        )

    def _rmsprop(self, learned: list[int], own: list[Tensor], along: list[Tensor]) -> None:
        rmsprop(
            own,
            along,
            self._zeros("square", learned, own),
            [],
            self._zeros("momentum", learned, own) if self._settings.momentum else [],
            self._steps(learned),
            foreach=_foreach(own),
            lr=self._lr,
            alpha=_ALPHA,
            eps=_EPSILON,
            weight_decay=self._settings.weight_decay,
            momentum=self._settings.momentum,
            centered=False,
        )

    def _zeros(self, name: str, learned: list[int], own: list[Tensor]) -> list[Tensor]:
        state = self._state[name]
        for index, tensor in zip(learned, own, strict=True):
            if index not in state:
                state[index] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
        return [kept for index in learned if (kept := state[index]) is not None]

    def _steps(self, learned: list[int]) -> list[Tensor]:
        state = self._state["steps"]
        for index in learned:
            if index not in state:
                state[index] = torch.tensor(0.0)
        return [count for index in learned if (count := state[index]) is not None]


def _foreach(tensors: list[Tensor]) -> bool:
    """As torch chooses: one kernel for all on an accelerator, one after the other on a CPU."""
    return tensors[0].device.type == "cuda"

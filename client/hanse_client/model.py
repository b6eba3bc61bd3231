"""A task's model at a site, kept warm: weights that come are loaded, and updates taken of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from hanse.errors import DivergedError, TaskError, UnprovableModelError
from hanse.slices import square_norm
from hanse.task import AnyTask
from torch import Tensor, nn

from hanse_client.steps import trainable


class WarmModel:
    """A model, its state, and what training makes of the weights that it began with.

    Args:
        device: where it is.

    Attributes:
        module: torch's, in training mode.
        state: its state, for names, shapes and dtypes.
    """

    def __init__(self, task: AnyTask, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):  # its weights are drawn and never used
            self.module = task.model().to(device)
        for layer in self.module.modules():
            if getattr(layer, "inplace", False):
                # Would overwrite the activations that gradients by record are made from.
                layer.inplace = False  # type: ignore[assignment]
        self.module.train()
        self.state: Mapping[str, Tensor] = dict(self.module.state_dict())
        self.copies = not _hooked(self.module)
        """Whether to load weights into it is to copy them."""

    @cached_property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training changes.

        Raises:
            TaskError: if there are none.
        """
        return trainable(self.module)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """The names of the parameters that training leaves as they are."""
        parameters = self.module.named_parameters(remove_duplicate=False)
        return frozenset(name for name, each in parameters if not each.requires_grad)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with ``weights``.

        Raises:
            TaskError: if they do not fit the model.
        """
        if self.copies and _alike(weights, self.state):
            with torch.no_grad():
                for name, own in self.state.items():
                    own.copy_(weights[name])
            return
        try:
            self.module.load_state_dict(weights)
        except RuntimeError as mismatch:
            raise TaskError(
                f"the weights received do not fit the task's model: {mismatch}",
                remedy="Install the same version of the task at the server and at the site.",
            ) from mismatch

    def update(
        self, weights: Mapping[str, Tensor], *, private: bool
    ) -> tuple[dict[str, Tensor], float]:
        """Local minus ``weights``, on the CPU, and the L2 norm of its floats.

        Args:
            private: whether nothing may have changed but what is trained.

        Raises:
            DivergedError: if it is not finite.
            UnprovableModelError: if something else has changed.
        """
        state = self.state if self.copies else self.module.state_dict()
        update, square = {}, 0.0
        for name, weight in weights.items():
            changed = difference(state[name], weight)
            if changed.is_floating_point():
                square += square_norm(changed)
            update[name] = changed.cpu()
        norm = math.sqrt(square)
        if not math.isfinite(norm) and not all(map(is_finite, update.values())):
            raise DivergedError("local training ended in weights that are not finite")
        if private:
            parameters = self.module.named_parameters(remove_duplicate=False)
            learned = {name for name, parameter in parameters if parameter.requires_grad}
            for name in update.keys() - learned:
                if bool(update[name].any()):
                    raise UnprovableModelError(f"{name!r} changed in private training, unlearnt")
        return update, norm


def difference(local: Tensor, weight: Tensor) -> Tensor:
    """Local minus global, computed in the model's dtype, in the weight's; on the CPU, or a GPU."""
    local = local.detach() if local.is_cuda else local.detach().cpu()
    weight = weight.to(local.device)
    if local.dtype == torch.bool:
        return local ^ weight
    return (local - weight.to(local.dtype)).to(weight.dtype)


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are."""
    return bool(torch.isfinite(tensor).all())


def _alike(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return weights.keys() == state.keys() and all(
        weights[name].shape == own.shape for name, own in state.items()
    )


def _hooked(model: nn.Module) -> bool:
    """Whether loading weights into a model is more than copying them."""
    return any(
        type(module)._load_from_state_dict is not nn.Module._load_from_state_dict
        or module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or module._state_dict_hooks
        or module._state_dict_pre_hooks
        for module in model.modules()
    )

"""The multi-layer perceptron that several tasks offer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

Activation = Literal["relu", "tanh"]
"""``tanh`` keeps gradients bounded, which suits clipping (Papernot et al. 2021)."""


def activation(name: Activation) -> nn.Module:
    """A fresh activation layer; never in place, since per-example hooks read its input."""
    return nn.ReLU() if name == "relu" else nn.Tanh()


def perceptron(sizes: Sequence[int], name: Activation) -> nn.Sequential:
    """Linear layers from ``sizes[0]`` features to ``sizes[-1]`` outputs, activations between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation(name)]
    return nn.Sequential(*layers[:-1])

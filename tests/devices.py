"""The devices that tests run on."""

from __future__ import annotations

import torch

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
"""What is promised of training is promised on each of them."""

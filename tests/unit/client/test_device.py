"""Devices by name, and refusals where there is none."""

from __future__ import annotations

import pytest
import torch
from hanse.errors import DeviceError
from hanse_client.device import describe, resolve


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without accelerators, to which a test may add some."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def with_gpus(machine: pytest.MonkeyPatch, count: int) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: count > 0)
    machine.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.usefixtures("machine")
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert resolve("auto") == resolve("cpu") == torch.device("cpu")


def test_auto_prefers_an_accelerator(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve("auto") == resolve("mps") == torch.device("mps")
    with_gpus(machine, 2)
    assert resolve("auto") == torch.device("cuda:0")


def test_each_client_can_be_told_its_gpu(machine: pytest.MonkeyPatch) -> None:
    with_gpus(machine, 2)
    assert resolve("cuda") == torch.device("cuda:0")
    assert resolve("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="'cuda:2': this machine has 2 CUDA devices"):
        resolve("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
@pytest.mark.usefixtures("machine")
def test_what_is_absent_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"device = '{name}': this machine has"):
        resolve(name)


def test_devices_are_described_for_people(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "get_device_name", lambda _: "A Large GPU")
    assert describe(torch.device("cuda:1")) == "cuda:1 (A Large GPU)"
    assert describe(torch.device("cpu")).startswith("cpu (")

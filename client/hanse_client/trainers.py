"""Trainers that stay warm: those of one site, or those that many simulated sites share."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import torch
from hanse.job import Job
from hanse.task import AnyTask, load_task

from hanse_client import device
from hanse_client.policy import check_model_size
from hanse_client.privacy.settings import EngineSettings
from hanse_client.site import Site
from hanse_client.training import Trainer
from hanse_client.weights import task_bytes


class MakeTrainer(Protocol):
    """Makes a trainer."""

    def __call__(
        self, task: AnyTask, device: torch.device, *, engine: EngineSettings
    ) -> Trainer: ...


class Trainers:
    """Makes a trainer for a job, a device and engine settings, and keeps it; for one thread.

    Sites that share an instance train on the same model, one after the other.

    Args:
        most: trainers that are kept; the one that was not used for longest goes.
        make: makes one of a task, a device and engine settings.
    """

    def __init__(self, most: int = 1, make: MakeTrainer = Trainer) -> None:
        self._most = most
        self._make = make
        self._warm: OrderedDict[tuple[str, str, str], tuple[Trainer, int]] = OrderedDict()
        self._devices: dict[str, torch.device] = {}

    def device(self, name: str) -> torch.device:
        """The device that a site's file names.

        Raises:
            DeviceError: if this machine has no such device.
        """
        if name not in self._devices:
            self._devices[name] = device.resolve(name)
        return self._devices[name]

    def of(self, job: Job, site: Site) -> Trainer:
        """The trainer of ``job`` at ``site``.

        Raises:
            PolicyError: if the task's model is larger than the site lets it be.
            TaskError: if there is no such task, or no such model.
        """
        key = job.digest, site.device, site.engine.model_dump_json()
        known = self._warm.get(key)
        if known is not None:
            trainer, size = known
            check_model_size(site.policy, size)
            self._warm.move_to_end(key)
            return trainer
        task = load_task(job.task.name, job.task.options)
        size = task_bytes(task) or 0
        check_model_size(site.policy, size)
        trainer = self._make(task, self.device(site.device), engine=site.engine)
        self._warm[key] = trainer, size
        while len(self._warm) > self._most:
            self._warm.popitem(last=False)
        return trainer

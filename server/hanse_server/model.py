"""The global model's beginning, and how the server itself judges it."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord
from hanse.errors import JobError
from hanse.evaluation import evaluate
from hanse.flower import read_tensors
from hanse.job import Job
from hanse.task import AnyTask
from torch import Tensor

from hanse_server.checkpoint import load_model


def initial_weights(task: AnyTask, job: Job) -> dict[str, Tensor]:
    """The weights that a run starts from: of the job's file, or fresh from its seed.

    Raises:
        WorkspaceError: if the file cannot be read.
        JobError: if it does not fit the task's model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = task.model()
    if job.initial_weights is not None:
        try:
            model.load_state_dict(load_model(job.initial_weights))
        except RuntimeError as mismatch:
            raise JobError(f"initial_weights do not fit the task's model: {mismatch}") from mismatch
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class CentralJudge:
    """Evaluates on the server's own records, where the job names some."""

    def __init__(self, task: AnyTask, job: Job) -> None:
        self._task = task
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = job.evaluation.central
        self._examples = None if path is None else task.read(path)
        self._model = None if path is None else task.model().to(self._device)

    def __call__(self, arrays: ArrayRecord) -> dict[str, float]:
        if self._examples is None or self._model is None:
            return {}
        self._model.load_state_dict(read_tensors(arrays))
        return evaluate(self._task, self._model, self._examples, self._device)

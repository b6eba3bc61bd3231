"""The benchmark of simulations with pfl-research: one process, its FedAvg and its backend."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from simulation_case import asked, layers
from torch import Tensor, nn

case = asked()


class Net(nn.Sequential):
    """The case's model, with what pfl asks of one."""

    def loss(self, inputs: Tensor, targets: Tensor, eval: bool = False) -> Tensor:  # noqa: A002
        return nn.functional.cross_entropy(self(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor, eval: bool = False) -> dict[str, Any]:  # noqa: A002
        return {}


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes the end of each round."""

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        case.ends.append(time.perf_counter())
        return False, Metrics()


np.random.seed(1)
torch.manual_seed(1)
net = Net(*layers(case.model))
clients = FederatedDataset(
    lambda client: Dataset((case.images[client], case.labels[client])),
    lambda: int(np.random.randint(len(case.images))),
)
model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
started = time.perf_counter()
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=case.rounds,
        evaluation_frequency=10**6,
        train_cohort_size=case.cohort,
        val_cohort_size=0,
    ),
    SimulatedBackend(training_data=clients, val_data=clients),
    model,
    NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=case.lr, local_batch_size=case.batch
    ),
    None,
    callbacks=[Clock()],
)
case.tell(started)

"""The benchmark of simulations with stock Flower: its FedAvg, and its simulation on Ray."""

from __future__ import annotations

import time
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from simulation_case import asked, layers
from torch import nn

case = asked()
client_app, server_app = ClientApp(), ServerApp()
started: list[float] = []


@client_app.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    number = int(context.node_config["partition-id"])
    net = nn.Sequential(*layers(case.model))
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=case.lr)
    images, labels = case.images[number], case.labels[number]
    for indices in torch.split(torch.randperm(len(labels)), case.batch):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(images[indices]), labels[indices]))
        optimizer.step()
    content: dict[str, Any] = {
        "arrays": ArrayRecord(net.state_dict()),
        "metrics": MetricRecord({"num-examples": len(labels)}),
    }
    return Message(RecordDict(content), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(
        fraction_train=case.cohort / len(case.images),
        fraction_evaluate=0.0,
        min_train_nodes=case.cohort,
        min_available_nodes=len(case.images),
    )
    arrays = ArrayRecord(nn.Sequential(*layers(case.model)).state_dict())

    def note(number: int, arrays: ArrayRecord) -> None:
        if number == 0:
            started.append(time.perf_counter())
        else:
            case.ends.append(time.perf_counter())

    strategy.start(grid, arrays, num_rounds=case.rounds, evaluate_fn=note)


run_simulation(
    server_app,
    client_app,
    num_supernodes=len(case.images),
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0}},
)
case.tell(started[0])

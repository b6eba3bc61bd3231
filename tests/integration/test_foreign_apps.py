"""A Flower ServerApp and ClientApp that know nothing of Hanse, over Hanse's link."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from hanse.identity import node_id_of

from tests.loopback import RUN_ID, Execute, Loopback

ROUNDS = 3


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(inputs)
        return output


# --- as in somebody's client_app.py -------------------------------------------------------------

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    model = Net()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    step, lr = context.node_config["step"], message.content.config_records["config"]["lr"]
    assert isinstance(step, float)
    assert isinstance(lr, float)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(step * lr)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"train_loss": step, "num-examples": int(step)}),
        }
    )
    return Message(content=content, reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    state = message.content.array_records["arrays"].to_torch_state_dict()
    metrics = MetricRecord({"bias": float(state["layer.bias"][0]), "num-examples": 1})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


# --- as in somebody's server_app.py -------------------------------------------------------------

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=1.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": 0.5}),
        num_rounds=ROUNDS,
    )
    context.state["final"] = result.arrays
    context.state["bias"] = MetricRecord(
        {str(number): each["bias"] for number, each in result.evaluate_metrics_clientapp.items()}
    )


def test_an_unmodified_server_app_and_client_app_run_over_the_link(loopback: Loopback) -> None:
    torch.manual_seed(1)
    start = Net().state_dict()
    torch.manual_seed(1)
    server = loopback.server()
    clients = [loopback.client(name, _site(name, step)) for name, step in _SITES.items()]
    server.await_sites(*_SITES)
    context = _context(1, {})

    server_app(server.grid(auto_settle=True), context)

    # Site s adds step * lr and weighs step: the average rises by 0.5 * (1*1 + 3*3) / (1 + 3).
    expected = {name: tensor + ROUNDS * 1.25 for name, tensor in start.items()}
    final = context.state["final"]
    assert isinstance(final, ArrayRecord)
    for name, tensor in final.to_torch_state_dict().items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-5)
    bias = context.state["bias"]
    assert isinstance(bias, MetricRecord)
    assert bias[str(ROUNDS)] == float(final.to_torch_state_dict()["layer.bias"][0])
    # What the app has gone on from needs no keeping; only its last answers may still be held.
    assert all(len(client.outbox.instructions()) <= 1 for client in clients)


_SITES = {"north": 1.0, "south": 3.0}


def _site(name: str, step: float) -> Execute:
    context = _context(node_id_of(name), {"step": step})
    return lambda message: client_app(message, context)


def _context(node_id: int, node_config: dict[str, bool | float | int | str]) -> Context:
    return Context(
        run_id=RUN_ID, node_id=node_id, node_config=node_config, state=RecordDict(), run_config={}
    )

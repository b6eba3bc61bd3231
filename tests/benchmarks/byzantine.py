"""Ten sites on MNIST of which two or three are hostile: accuracy (%) by strategy and attack.

An MLP of 50,890 weights on the first 10,000 training images, split over the sites by
Dirichlet(0.5), 10 rounds of one local epoch, judged on the 10,000 test images. Hostile sites train
as they should, and send in place of their update: its negative (``flipped``), a hundred times it
(``scaled``), normal numbers of ten times its norm (``random``), or NaN. Every strategy is told how
many are hostile, where it can be; Bulyan is told of one, the most that it takes among ten sites.
``bounded`` is the default strategy with ``checks.max_update_norm`` at the largest norm that an
honest site had in the first round.

Data: a folder with MNIST's four IDX files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, RecordDict
from hanse.flower import only_arrays, to_record, to_tensors
from hanse.identity import node_id_of
from hanse.job import Job
from hanse.metrics import new_registry
from hanse.simulation import CLIENT_APP, SimulatedSites
from hanse_server.history import read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import RoundLoop
from hanse_server.simulation.grid import Engine, LocalGrid
from hanse_server.simulation.process import ProcessEngine
from hanse_server.simulation.sites import lay_out
from hanse_server.workspace import Workspace
from torch import Tensor

SITES, ROUNDS, SEED = 10, 10, 1
TRAIN, TEST = "train-images-idx3-ubyte.gz", "test-images-idx3-ubyte.gz"
HOSTILE = (2, 3)

Attack = Callable[[Tensor, torch.Generator], Tensor]


def random(update: Tensor, randomness: torch.Generator) -> Tensor:
    noise = torch.randn(update.shape, generator=randomness)
    return noise.mul_(10.0 * float(update.norm()) / float(noise.norm()))


ATTACKS: dict[str, Attack] = {
    "flipped": lambda update, _: -update,
    "scaled": lambda update, _: update.mul(100.0),
    "random": random,
    "nan": lambda update, _: torch.full_like(update, torch.nan),
}


def strategies(hostile: int, honest_norm: float) -> dict[str, dict[str, Any]]:
    """What of a job makes each strategy."""
    known = {"num_malicious_nodes": hostile}
    return {
        "StreamingFedAvg": {},
        "bounded": {"checks": {"max_update_norm": honest_norm}},
        "FedMedian": {"strategy": {"name": "FedMedian"}},
        "FedTrimmedAvg": {"strategy": {"name": "FedTrimmedAvg", "options": {"beta": hostile / 10}}},
        "Krum": {"strategy": {"name": "Krum", "options": known}},
        "MultiKrum": {
            "strategy": {
                "name": "MultiKrum",
                "options": known | {"num_nodes_to_select": SITES - hostile},
            }
        },
        "Bulyan": {"strategy": {"name": "Bulyan", "options": {"num_malicious_nodes": 1}}},
    }


class Byzantine:
    """An engine that answers for some sites with what an attack makes of their updates."""

    def __init__(self, engine: Engine, names: Sequence[str], attack: Attack | None) -> None:
        self._engine = engine
        self._hostile = {node_id_of(name) for name in names}
        self._attack = attack
        self._randomness = torch.Generator().manual_seed(SEED)

    def execute(self, messages: Sequence[Message]) -> Iterator[Message]:
        for reply in self._engine.execute(messages):
            if self._attack is not None and reply.metadata.src_node_id in self._hostile:
                ((key, _),) = reply.content.array_records.items()
                update = to_tensors(only_arrays(reply.content))
                forged = {n: self._attack(each, self._randomness) for n, each in update.items()}
                reply.content = RecordDict({**reply.content, key: to_record(forged)})
            yield reply

    def close(self) -> None:
        self._engine.close()


def job(data: Path, **changes: Any) -> Job:
    """The job, judged by the server after its last round."""
    strategy = {"quorum": SITES - max(HOSTILE), **changes.pop("strategy", {})}
    return Job.model_validate(
        {
            "name": "byzantine",
            "rounds": ROUNDS,
            "seed": SEED,
            "task": {
                "name": "image",
                "options": {
                    "shape": [1, 28, 28],
                    "classes": 10,
                    "mean": [0.13],
                    "std": [0.31],
                    "model": {"kind": "mlp", "hidden": [64]},
                },
            },
            "training": {"epochs": 1, "batch_size": 32, "optimizer": {"lr": 0.05}},
            "privacy": {"mechanism": "none"},
            "evaluation": {"federated": False, "every": ROUNDS, "central": data / TEST},
            "strategy": strategy,
            **changes,
        }
    )


class Federation:
    """The sites and their worker, warm from one run to the next."""

    def __init__(self, data: Path, folder: Path) -> None:
        self._data, self._folder = data, folder
        self.sites: SimulatedSites = lay_out(
            job(data),
            data=data / TRAIN,
            partition_spec="dirichlet:0.5",
            count=SITES,
            folder=folder,
        ).model_copy(update={"waived": True})
        nodes = {node_id_of(name): name for name in self.sites.names}
        self._engine = ProcessEngine(CLIENT_APP, self.sites.model_dump_json(), nodes)
        self._runs = 0

    def close(self) -> None:
        self._engine.close()

    def run(self, hostile: int, attack: Attack | None, **changes: Any) -> list[dict[str, Any]]:
        """The history of a run."""
        self._runs += 1
        workspace = Workspace(self._folder / f"run-{self._runs}", job(self._data, **changes))
        engine = Byzantine(self._engine, self.sites.names[:hostile], attack)
        grid = LocalGrid(workspace.run_id, self.sites.names, engine)
        metrics = ServerMetrics(new_registry())
        asked = job(self._data, **changes)
        RoundLoop(asked, grid, workspace, metrics, lambda record: None).run()
        return read_history(workspace.folder)


def accuracy(history: list[dict[str, Any]]) -> float:
    value: float = history[-1]["central"]["accuracy"]
    return 100.0 * value


def rows(data: Path) -> list[dict[str, Any]]:
    """One row for each number of hostile sites and each strategy."""
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(data, Path(folder))
        try:
            first = federation.run(0, None)[0]["sites"].values()
            norm = max(site["update_norm"] for site in first)
            return [
                {
                    "hostile": hostile,
                    "strategy": name,
                    "no_attack": accuracy(federation.run(hostile, None, **changes)),
                    **{
                        kind: accuracy(federation.run(hostile, attack, **changes))
                        for kind, attack in ATTACKS.items()
                    },
                }
                for hostile in HOSTILE
                for name, changes in strategies(hostile, norm).items()
            ]
        finally:
            federation.close()

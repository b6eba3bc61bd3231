"""A ServerApp of Flower's FedAvg, with a clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """Notes when each round begins and when its mean is there, in Unix seconds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.started: list[float] = []
        self.ended: list[float] = []

    def configure_train(self, *arguments: Any, **named: Any) -> Any:
        """The beginning of a round."""
        self.started.append(time.time())
        return super().configure_train(*arguments, **named)

    def aggregate_train(self, *arguments: Any, **named: Any) -> Any:
        """Its end."""
        result = super().aggregate_train(*arguments, **named)
        self.ended.append(time.time())
        if result[0] is None:
            raise RuntimeError("a round without a mean")
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; nothing is evaluated."""
    config = context.run_config
    while len(list(grid.get_node_ids())) < int(config["sites"]):
        time.sleep(0.1)
    rested = time.time()
    random = np.random.default_rng(0)
    shapes = json.loads(str(config["shapes"]))
    model = ArrayRecord([random.standard_normal(shape, dtype=np.float32) for shape in shapes])
    strategy = Timed(
        fraction_evaluate=0.0,
        min_train_nodes=int(config["sites"]),
        min_available_nodes=int(config["sites"]),
    )
    strategy.start(grid=grid, initial_arrays=model, num_rounds=int(config["rounds"]))
    told = {"rested": [rested], "started": strategy.started, "ended": strategy.ended}
    partial = Path(str(config["told"]) + ".part")
    partial.write_text(json.dumps(told))
    partial.rename(str(config["told"]))

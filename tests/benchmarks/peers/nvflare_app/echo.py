"""NVFlare's FedAvg with a clock, and sites that send back what they get."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.fuel.utils import fobs


class Timed(FedAvg):  # type: ignore[misc]  # NVFlare is not installed where types are checked
    """Notes when each round begins and when its mean is there, in Unix seconds.

    Args:
        shapes: of the model's float32 arrays.
        told: the file to write the times to, at the end.
    """

    def __init__(self, shapes: list[list[int]], told: str, **options: Any) -> None:
        super().__init__(persistor_id="", **options)
        fobs.register(NumpyArrayDecomposer)
        self._shapes = shapes
        self._told = Path(told)
        self._times: dict[str, list[float]] = {"rested": [], "started": [], "ended": []}

    def load_model(self) -> Any:
        """The initial model."""
        self._times["rested"].append(time.time())
        random = np.random.default_rng(0)
        arrays = [random.standard_normal(shape, dtype=np.float32) for shape in self._shapes]
        return FLModel(params={f"{number}.weight": each for number, each in enumerate(arrays)})

    def event(self, event_type: str) -> None:
        """The beginning of a round."""
        if event_type == AppEventType.ROUND_STARTED:
            self._times["started"].append(time.time())
        super().event(event_type)

    def update_model(self, *arguments: Any, **named: Any) -> Any:
        """Its end."""
        model = super().update_model(*arguments, **named)
        self._times["ended"].append(time.time())
        return model

    def run(self) -> None:
        """All rounds, and what there is to tell of them."""
        super().run()
        partial = self._told.with_suffix(".part")
        partial.write_text(json.dumps(self._times))
        partial.rename(self._told)


class Echo(Executor):  # type: ignore[misc]
    """Trains nothing."""

    def __init__(self) -> None:
        super().__init__()
        fobs.register(NumpyArrayDecomposer)

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        """Send the arrays back."""
        model = from_shareable(shareable)
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        return DXO(DataKind.WEIGHTS, data=model.data, meta=meta).to_shareable()

"""Hanse as it is deployed: what ``hanse server run`` does, with its sites as real processes.

A round is timed from the strategy's messages to its new model, all replies checked and folded;
between two rounds lie the checkpoint and all else that the server keeps and tells.

The first argument says what sites do: ``echo`` is the client's link, outbox and worker around an
app that sends back what it got; ``gates`` is ``hanse client run`` as it is, with all gates, where
only the training itself is left out.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from hanse.job import Job
from hanse.privacy.accounting import Charge, epsilon
from hanse_server.serve import Listening, serve
from hanse_server.strategies.streaming import StreamingFedAvg

from tests.benchmarks.federations import forks
from tests.benchmarks.federations.case import Case, Measured, asked
from tests.benchmarks.federations.layers import Layers
from tests.benchmarks.federations.memory import OwnMemory
from tests.benchmarks.federations.provisioned import HOST, Provisioned

SITES = "tests.benchmarks.federations.hanse_sites"
LEARNING_RATE = 1e-3  # the model is its own update: it must not grow beyond all bounds


class Timed(StreamingFedAvg):
    """The default strategy with a clock."""

    memory: ClassVar = OwnMemory()
    rounds: ClassVar[list[tuple[float, float]]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.memory.rests()
        self._started = 0.0

    def configure_train(self, *arguments: Any) -> Any:
        """The beginning of a round."""
        if not self.rounds:
            self.memory.begins()
        self._started = time.perf_counter()
        return super().configure_train(*arguments)

    def aggregate_train(self, *arguments: Any) -> Any:
        """Its end."""
        result = super().aggregate_train(*arguments)
        self.rounds.append((self._started, time.perf_counter()))
        return result

    @classmethod
    def measured(cls) -> Measured:
        """What there is to tell at the end of the run."""
        return Measured(
            seconds=[end - start for start, end in cls.rounds],
            between=[later - start for (start, _), (later, _) in pairwise(cls.rounds)],
            rest_bytes=cls.memory.rest,
            peak_bytes=cls.memory.peak,
        )


def job(case: Case) -> Job:
    """One private step a round, if it were made; nothing is evaluated."""
    name = f"{Layers.__module__}:{Layers.__name__}"
    return Job.model_validate(
        {
            "name": "layers",
            "rounds": case.rounds + 1,
            "task": {"name": name, "options": {"megabytes": case.megabytes}},
            "training": {"steps": 1, "batch_size": 2},
            "privacy": {"noise_multiplier": 8.0, "sampling_rate": 0.5},
            "strategy": {"quorum": case.sites, "options": {"lr": LEARNING_RATE}},
            "evaluation": {"federated": False},
        }
    )


def main() -> None:
    """Run the case of the command line."""
    sites_do, *arguments = sys.argv[1:]
    case = asked(arguments)
    # What the first private round would import is at rest before it, as all other code is.
    epsilon([Charge(noise_multiplier=1.0, sampling_rate=0.5, steps=1)], 1e-5)
    with tempfile.TemporaryDirectory() as folder:
        federation = Provisioned.create(Path(folder), case.site_names)
        listening = Listening(host=HOST, port=federation.port, metrics_host=HOST, metrics_port=0)
        with (
            forks.sites(SITES, sites_do, folder, str(federation.port), *case.arguments),
            patch("hanse_server.strategies.StreamingFedAvg", Timed),
        ):
            serve(job(case), federation.layout.folder, Path(folder, "run"), listening)
            Timed.measured().tell()


if __name__ == "__main__":
    main()

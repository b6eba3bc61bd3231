"""What is asked of a federation in a benchmark, and what it tells: the same of each contestant.

A contestant is a module that is run as a process of its own: ``python -m MODULE --sites 2
--megabytes 0.39 --rounds 5``. It starts a server and that many sites as real processes, sends a
model to them and averages what comes back, round after round, with no training, and prints
:class:`Measured` as its last line. Only the standard library is imported here, so that a peer's
interpreter can import it too.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass

WIDTH = 1000


@dataclass(frozen=True, kw_only=True)
class Case:
    """So many rounds with so many sites and a model of so many megabytes (10^6 bytes).

    Attributes:
        rounds: those that count; one more goes before them, in which everything is new.
    """

    sites: int
    megabytes: float
    rounds: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The model's float32 matrices: 4 MB each, and a last one of what is left."""
        rows = max(1, round(self.megabytes * 1e6 / 4 / WIDTH))
        layers = [(WIDTH, WIDTH)] * (rows // WIDTH)
        return [*layers, (rows % WIDTH, WIDTH)] if rows % WIDTH else layers

    @property
    def model_bytes(self) -> int:
        """The bytes of the model."""
        return sum(4 * rows * columns for rows, columns in self.shapes)

    @property
    def site_names(self) -> list[str]:
        """The names of the sites."""
        return [f"site-{number}" for number in range(self.sites)]

    @property
    def arguments(self) -> list[str]:
        """The case as a command line."""
        told = asdict(self).items()
        return [part for name, value in told for part in (f"--{name}", str(value))]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a contestant tells.

    Attributes:
        seconds: of each round, the first one first: from its start to its mean of the replies.
        between: seconds from each round's start to the next one's; empty if it is the same.
        rest_bytes: the server's memory in use when all is there but the model.
        peak_bytes: the most that it used in a round; both with all processes on the server's
            side.
    """

    seconds: Sequence[float]
    between: Sequence[float] = ()
    rest_bytes: int = 0
    peak_bytes: int = 0

    def tell(self) -> None:
        """Print it as the last line."""
        print(json.dumps(asdict(self)), flush=True)

    @staticmethod
    def told(output: str) -> Measured:
        """What a contestant has printed last."""
        return Measured(**json.loads(output.strip().splitlines()[-1]))


def asked(arguments: Sequence[str] | None = None) -> Case:
    """The case that the command line names."""
    parser = ArgumentParser()
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--megabytes", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    return Case(**vars(parser.parse_args(sys.argv[1:] if arguments is None else arguments)))

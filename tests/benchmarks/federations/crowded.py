"""``hanse server run`` for a crowd, with a clock and a look at its memory."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

from hanse.errors import QuorumError
from hanse_server.serve import Listening, serve

from tests.benchmarks.federations.case import asked
from tests.benchmarks.federations.hanse_deployed import Timed, job
from tests.benchmarks.federations.provisioned import HOST, Provisioned


def main() -> None:
    """The federation's folder and port, and the case."""
    folder, port, *arguments = sys.argv[1:]
    case, federation = asked(arguments), Provisioned(Path(folder), int(port))
    listening = Listening(host=HOST, port=federation.port, metrics_host=HOST, metrics_port=0)
    all_of_them = job(case)
    strategy = all_of_them.strategy.model_copy(update={"patience": 1, "deadline": 600.0})
    asks = all_of_them.model_copy(update={"strategy": strategy})
    with patch("hanse_server.strategies.StreamingFedAvg", Timed), suppress(QuorumError):
        serve(asks, federation.layout.folder, federation.folder / "run", listening)
    Timed.measured().tell()


if __name__ == "__main__":
    main()

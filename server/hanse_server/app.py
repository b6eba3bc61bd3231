"""The Flower ServerApp of Hanse: the same object in a simulation and over the wire."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from hanse.job import Job

from hanse_server.grid import HanseGrid
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import RoundLoop
from hanse_server.workspace import Workspace


def make_server_app(job: Job, workspace: Workspace, metrics: ServerMetrics) -> ServerApp:
    """The ServerApp that runs ``job`` in ``workspace``, on any :class:`HanseGrid`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:
        if not isinstance(grid, HanseGrid):
            raise TypeError(f"Hanse's ServerApp runs on a HanseGrid, not on {type(grid).__name__}")
        RoundLoop(job, grid, workspace, metrics).run()

    return app

"""The Flower ServerApp of Hanse: the same object in a simulation and over the wire."""

from __future__ import annotations

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from hanse.flower import SERVER_NODE_ID
from hanse.job import Job

from hanse_server.grid import HanseGrid
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import OnRound, RoundLoop
from hanse_server.workspace import Workspace


def make_server_app(
    job: Job,
    workspace: Workspace,
    metrics: ServerMetrics,
    on_round: OnRound = lambda record: None,
) -> ServerApp:
    """The ServerApp that runs ``job`` in ``workspace``, on any :class:`HanseGrid`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:
        if not isinstance(grid, HanseGrid):
            raise TypeError(f"Hanse's ServerApp runs on a HanseGrid, not on {type(grid).__name__}")
        RoundLoop(job, grid, workspace, metrics, on_round).run()

    return app


def run_app(app: ServerApp, grid: HanseGrid) -> None:
    """Run a ServerApp, Hanse's or anybody's, on ``grid`` until it is done."""
    context = Context(
        run_id=grid.run_id,
        node_id=SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    app(grid, context)

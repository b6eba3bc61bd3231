"""Hanse's ServerApp for a SuperLink: ``serverapp = "hanse_server.flower_app:app"``.

`hanse server flower-app` writes the folder that `flwr run` takes, which names it.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hanse_server.superlink.run import run_on_superlink

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run's configuration names."""
    run_on_superlink(grid, context.run_config)

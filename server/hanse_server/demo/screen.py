"""The demo's live table: what the server's workspace tells, drawn anew a few times a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hanse.errors import WorkspaceError
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hanse_server.demo.federation import DemoFederation
from hanse_server.demo.processes import Processes
from hanse_server.history import read_history
from hanse_server.status import Status, read_status
from hanse_server.views import status_line

REFRESH_SECONDS = 0.25


def watch(federation: DemoFederation, processes: Processes, *, live: bool) -> None:
    """Wait for the server's end, showing the run meanwhile if ``live``.

    Raises:
        ProcessError: if a process fails.
    """
    if not live:
        while not processes.done():
            time.sleep(REFRESH_SECONDS)
        return
    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=1 / REFRESH_SECONDS) as screen:
        done = False
        while not done:
            done = processes.done()
            screen.update(_draw(federation))
            time.sleep(0 if done else REFRESH_SECONDS)


@contextmanager
def saying(what: str, *, live: bool) -> Iterator[None]:
    """Show that ``what`` goes on, while the context lasts, if ``live``."""
    if not live:
        yield
        return
    with Console(stderr=True).status(what):
        yield


def _draw(federation: DemoFederation) -> RenderableType:
    history = read_history(federation.run)
    try:
        status: Status | None = read_status(federation.run)
    except WorkspaceError:
        status = None
    last = history[-1] if history else None
    metrics = Text(f"metrics: {federation.metrics_urls()['server']}", style="dim")
    return Group(_head(status, history), _sites(federation, status, last), metrics)


def _head(status: Status | None, history: list[dict[str, Any]]) -> RenderableType:
    if status is None:
        return Text("starting one server and four hospitals ...")
    line = status_line(status).append("\n")
    line.stylize("bold")
    judged = [each["federated"] for each in history if each["federated"]]
    if judged:
        shown = "   ".join(f"{name} {value:.3f}" for name, value in judged[-1].items())
        line.append(f"{shown} (mean of the hospitals' own)   ", style="cyan")
    up = sum(each["bytes_up"] for each in history)
    down = sum(each["bytes_down"] for each in history)
    line.append(f"{decimal(up)} up, {decimal(down)} down", style="dim")
    bar = Table.grid()
    bar.add_row(ProgressBar(total=status.rounds, completed=len(history), width=60))
    return Group(line, bar)


def _sites(
    federation: DemoFederation, status: Status | None, last: dict[str, Any] | None
) -> RenderableType:
    table = Table("hospital", "link", "last round", "epsilon spent", "update norm")
    connected = status.connected if status else ()
    for name in federation.sites:
        site = last["sites"].get(name) if last else None
        link = "[green]connected[/]" if name in connected else "[yellow]connecting[/]"
        if site is None:
            table.add_row(name, link, "", "", "")
            continue
        epsilon, norm = site["metrics"].get("epsilon"), site["update_norm"]
        table.add_row(
            name,
            link,
            f"{site['outcome']} in {site['seconds']:.2f} s",
            "" if epsilon is None else f"{epsilon:.3f}",
            "" if norm is None else f"{norm:.3f}",
        )
    return table

"""`hanse demo`: four hospitals and a server, real processes on this machine, real records."""

from __future__ import annotations

import time
from pathlib import Path

from hanse.job import load_job

from hanse_server.demo.comparison import Judge, baselines, write_comparison
from hanse_server.demo.federation import set_up
from hanse_server.demo.processes import read_ledgers, running
from hanse_server.demo.result import DemoResult
from hanse_server.demo.screen import saying, watch
from hanse_server.report import write_report
from hanse_server.views import run_outcome


def run_demo(folder: Path, *, live: bool) -> DemoResult:
    """Provision, start, watch, stop, compare, report; everything is left in ``folder``.

    Args:
        live: show a table of the run while it lasts.

    Raises:
        ProcessError: if a process failed, with the place of its log.
        WorkspaceError: if ``folder`` holds something else than a demo.
    """
    started = time.monotonic()
    federation = set_up(folder)
    with running(federation) as processes:
        watch(federation, processes, live=live)
    with saying("reading each hospital's ledger ...", live=live):
        ledgers = read_ledgers(federation)
    job = load_job(federation.job)
    judge = Judge(job, federation.sites)
    spent = max(ledger["epsilon"] for ledger in ledgers.values())
    model = federation.run / "models" / "last.safetensors"
    private = judge.row("federation, private", model, spent)
    with saying("training what to compare with: hospitals alone, pooled ...", live=live):
        others = baselines(federation.job_without_privacy, federation.sites, judge)
    write_comparison(federation.run, [private, *others])
    return DemoResult(
        outcome=run_outcome(job, federation.run),
        private=private,
        baselines=others,
        ledgers=ledgers,
        report=write_report(federation.run, folder / "report.html"),
        metrics=federation.metrics_urls(),
        seconds=time.monotonic() - started,
    )

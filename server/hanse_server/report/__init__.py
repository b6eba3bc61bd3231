"""The report of a run: one HTML file that opens without a network.

It is for three readers: the operator (did it run well, which site failed and why), the data
scientist (what was learnt) and the data-protection officer (what it told of any record).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from hanse.errors import WorkspaceError
from jinja2 import Environment, PackageLoader, StrictUndefined

from hanse_server.durable import write_file
from hanse_server.report import formats
from hanse_server.report.facts import RunFacts, read_facts
from hanse_server.report.outline import key_figures, outcome
from hanse_server.report.panels import metrics_left_out, panels
from hanse_server.report.privacy import NO_PRIVACY, NOT_KNOWN, NOT_RELEASED, privacy_statement
from hanse_server.report.settings import as_toml

PACKAGES = ("flwr", "torch")


def write_report(workspace: Path, output: Path) -> Path:
    """Write the report of the run in ``workspace`` to ``output``, and return that.

    The same workspace gives the same bytes. A run that is under way is reported as far as it is.

    Raises:
        WorkspaceError: if ``workspace`` is none or damaged, or ``output`` cannot be written.
    """
    page = render(read_facts(workspace))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, page.encode())
    except OSError as refused:
        raise WorkspaceError(
            f"{output} cannot be written: {refused.strerror}", remedy="Name another --output."
        ) from refused
    return output


def render(run: RunFacts) -> str:
    """The report as HTML."""
    # Names and reasons come from other people's sites: every value is escaped.
    pages = Environment(
        loader=PackageLoader("hanse_server", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "number": formats.number,
        "short": formats.short,
        "metric": lambda value, name: formats.metric(name, value),
        "spent": formats.epsilon_spent,
        "left": formats.epsilon_left,
        "size": formats.size,
        "duration": formats.duration,
        "moment": formats.moment,
    }
    return pages.get_template("template.html.j2").render(
        run=run,
        outcome=outcome(run),
        figures=key_figures(run),
        panels=panels(run),
        metrics_left_out=metrics_left_out(run),
        privacy=privacy_statement(run),
        settings=as_toml(run.settings),
        versions=_versions(run),
        no_privacy=NO_PRIVACY,
        unknown=(NOT_KNOWN, NOT_RELEASED),
    )


def _versions(run: RunFacts) -> list[tuple[str, str]]:
    written = [
        (f"{model.name.capitalize()} model written by", f"hanse {model.hanse}")
        for model in run.models
    ]
    here = ", ".join(f"{name} {version(name)}" for name in ("hanse", *PACKAGES))
    return [("Run started by", f"hanse {run.hanse}"), *written, ("Report written with", here)]

"""The folder that `flwr run` takes: it names Hanse's two apps, and holds the job and no code."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import hanse
from hanse.errors import JobError, WorkspaceError
from hanse.job import load_job

from hanse_server.superlink.run import refuse_secure

_PROJECT = """\
# Flower's description of an app; `flwr run` takes this folder. Both apps are those of the hanse
# that is installed at the SuperLink and at the sites: no code is in here.

[project]
name = {name}
version = {version}
dependencies = []

[tool.flwr.app]
publisher = "hanse"

[tool.flwr.app.components]
serverapp = "hanse_server.flower_app:app"
clientapp = "hanse_client.flower_app:app"

[tool.flwr.app.config]
job = "job.toml"
# The run's folder, at the SuperLink. The same run goes on in it; another job needs another.
workspace = {workspace}
# Port of the server's Prometheus metrics while the run lasts; 0 for none.
metrics-host = "127.0.0.1"
metrics-port = 9463
"""


def write_flower_app(job_file: Path, folder: Path, workspace: Path) -> None:
    """Write the folder.

    Args:
        folder: made; must not be there, or be empty.
        workspace: the run's folder, at the SuperLink.

    Raises:
        JobError: if the job is invalid, or names files that the folder cannot hold.
        SecureAggregationError: if it cannot run there.
        WorkspaceError: if the folder is in use, or the workspace is not absolute.
    """
    job = load_job(job_file)
    refuse_secure(job)
    if not workspace.is_absolute():
        raise WorkspaceError(
            f"workspace {workspace} is not absolute",
            remedy="Name a folder at the SuperLink, as in /var/lib/hanse/runs/heart.",
        )
    _refuse_relative(job_file)
    if folder.exists() and any(folder.iterdir()):
        raise WorkspaceError(f"{folder} is not empty", remedy="Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job_file, folder / "job.toml")
    name = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-") or "job"
    text = _PROJECT.format(
        name=json.dumps(name),
        version=json.dumps(hanse.__version__),
        workspace=json.dumps(str(workspace)),
    )
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def _refuse_relative(job_file: Path) -> None:
    """The ServerApp reads the job at the SuperLink: what it names there must be found there."""
    written = tomllib.loads(job_file.read_text(encoding="utf-8"))
    named = {
        "initial_weights": written.get("initial_weights"),
        "evaluation.central": written.get("evaluation", {}).get("central"),
    }
    for key, value in named.items():
        if value is not None and not Path(value).is_absolute():
            raise JobError(
                f"{key} = {value!r} is relative, and the SuperLink has no such file",
                remedy="Put the file there, and name it by an absolute path.",
            )

"""The folder of one run: what it is, how far it is, and what it left behind.

::

    run.json            the run's id and its job
    status.json         what the server is doing now, for `hanse server status`
    history.jsonl       one line a round
    audit.jsonl         what was sent and accepted, chained by hash: hanse_server.audit.trail
    journal.sqlite      what each site is owed and owes
    session.json        the secure round under way, and who answered which of its stages
    checkpoints/        round-00012/: model, strategy state, progress
    models/             last.safetensors, best.safetensors, each with its statement
    report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hanse
from hanse.errors import WorkspaceError
from hanse.job import Job
from hanse.parsing import parse_json
from pydantic import BaseModel, ValidationError

from hanse_server.audit import ServerTrail
from hanse_server.durable import kept_in, unreadable, write_file
from hanse_server.history import RoundRecord, read_history


class _Run(BaseModel):
    """What ``run.json`` must hold."""

    run_id: int
    job: dict[str, Any]


class Workspace:
    """An open workspace; one process at a time.

    Args:
        folder: made if it is not there.
        job: the job that it is for.
        pace: seconds between checkpoints. With 0 every round is durable before the next one
            begins, as sites must have it that have spent privacy on it.

    Raises:
        WorkspaceError: if it is of another job, damaged, or in use.
    """

    def __init__(self, folder: Path, job: Job, *, pace: float = 0.0) -> None:
        self.folder = folder
        self.pace = pace
        self._job_file = folder / "run.json"
        if self._job_file.exists():
            self.run_id = self._resume(job)
        else:
            self.run_id = self._begin(job)
        self.trail = ServerTrail(None)
        """What is told of the run, once :meth:`open_trail` was called; nothing in a simulation."""

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.folder / "checkpoints"

    @property
    def models(self) -> Path:
        """Where the best and the last model are."""
        return self.folder / "models"

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.folder / "journal.sqlite"

    def _begin(self, job: Job) -> int:
        for folder in (self.folder, self.checkpoints, self.models):
            make_folder(folder)
        run_id = secrets.randbits(63)
        run = {
            "run_id": run_id,
            "started_at": time.time(),
            "hanse": hanse.__version__,
            "job_digest": job.digest,
            "job": json.loads(job.model_dump_json()),
        }
        with kept_in(self.folder):
            write_file(self._job_file, json.dumps(run, indent=2).encode())
        return run_id

    def _resume(self, job: Job) -> int:
        run = read_run(self.folder)
        # What shapes no result may change between two starts of a run.
        free = {"limits", "simulation"}
        before, now = _as_read_today(run["job"]), json.loads(job.model_dump_json())
        changed = [key for key in now if key not in free and before.get(key) != now[key]]
        if changed:
            raise WorkspaceError(
                f"{self.folder} is the workspace of another job: {', '.join(changed)} differ",
                remedy="Name another --workspace for the changed job, or change the job back.",
            )
        return int(run["run_id"])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the workspace against other processes."""
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as taken:
                raise WorkspaceError(
                    f"{self.folder} is in use by another process",
                    remedy="Stop the other server, or name another --workspace.",
                ) from taken
            yield

    def open_trail(self) -> ServerTrail:
        """The audit trail; the workspace must be :meth:`locked`."""
        try:
            self.trail = ServerTrail(audit_path(self.folder))
        except OSError as error:
            raise WorkspaceError(
                f"{audit_path(self.folder)} cannot be opened: {error.strerror}",
                remedy="Check the permissions of the workspace.",
            ) from error
        return self.trail

    def append(self, record: RoundRecord) -> None:
        """Add a round to the history."""
        path = self.folder / "history.jsonl"
        with kept_in(self.folder), path.open("ab") as file:
            file.write(record.to_line())
            file.flush()
            if not self.pace:
                os.fsync(file.fileno())

    def truncate(self, last_round: int) -> list[dict[str, Any]]:
        """Forget rounds after ``last_round``, whose checkpoint was never finished.

        Returns:
            The history that is left.
        """
        kept = [line for line in read_history(self.folder) if line["round"] <= last_round]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        with kept_in(self.folder):
            write_file(self.folder / "history.jsonl", text.encode())
        return kept


def _as_read_today(job: dict[str, Any]) -> dict[str, Any]:
    """A job as it was kept, with today's default for every key that there was not yet."""
    try:
        read: dict[str, Any] = json.loads(Job.model_validate(job).model_dump_json())
    except ValidationError:
        return job
    return read


def audit_path(folder: Path) -> Path:
    """Where a workspace's audit trail is."""
    return folder / "audit.jsonl"


def make_folder(folder: Path) -> None:
    """Make a folder of a workspace, if it is not there.

    Raises:
        WorkspaceError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"{folder} cannot be made: {error.strerror}",
            remedy="Name another --workspace, in a folder that you may write to.",
        ) from error


def in_use(folder: Path) -> bool:
    """Whether a process holds the workspace at this moment."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a workspace.

    Raises:
        WorkspaceError: if there is none, or it is damaged.
    """
    try:
        run: dict[str, Any] = parse_json((folder / "run.json").read_bytes())
        _Run.model_validate(run, strict=True)
    except FileNotFoundError as missing:
        raise WorkspaceError(
            f"{folder} is not a workspace: it has no run.json",
            remedy="Name the --workspace that `hanse server run` or `hanse simulate` was given.",
        ) from missing
    except OSError as error:
        raise unreadable(folder / "run.json", str(error.strerror)) from error
    except ValueError as damaged:
        raise unreadable(folder / "run.json", "it is damaged") from damaged
    return run

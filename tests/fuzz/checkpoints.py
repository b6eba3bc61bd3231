"""Files of the server's workspace: checkpoints, weights to begin with, and what tells of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import torch
from hanse.flower import to_record
from hanse.task import load_task
from hanse_server.archive import Archive
from hanse_server.checkpoint import Checkpoint, Progress, load_last, save, save_tensors
from hanse_server.history import RoundRecord, SiteRound, Terms
from hanse_server.model import initial_weights
from hanse_server.report.facts import read_facts
from hanse_server.secagg.transcript import Transcript
from hanse_server.status import Awaited, Status, read_status
from hanse_server.views import run_outcome
from hanse_server.workspace import Workspace

from tests.fuzz.mutation import change_bytes, change_json
from tests.fuzz.target import Mutate, Target, each
from tests.harbour import job

_TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "h": torch.zeros(2).half()}


def _safetensors(tensors: dict[str, torch.Tensor], path: Path) -> bytes:
    save_tensors(tensors, path, {"note": "x"})
    return path.read_bytes()


def _change_tensors(data: bytes, randomness: Random) -> bytes:
    """A change to the JSON before the tensors, or to their bytes."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    if randomness.random() < 0.2:
        return data[:8] + header + change_bytes(body, randomness)
    header = change_json(header, randomness)
    return len(header).to_bytes(8, "little") + header + body


def _tagged(parts: list[Mutate]) -> Mutate:
    """Changes to an input whose first byte tells what the rest of it is."""

    def mutate(data: bytes, randomness: Random) -> bytes:
        which = (data[0] if data else 0) % len(parts)
        return bytes([which]) + parts[which](data[1:], randomness)

    return mutate


def checkpoints(folder: Path) -> Target:
    """One file of a checkpoint, the others whole."""
    progress = Progress(round=3, missed=1, best=0.5, best_round=2)
    state = Checkpoint(progress=progress, arrays=to_record(_TENSORS), strategy={"v": torch.ones(3)})
    save(folder, state)
    last = folder / "round-00003"
    names = ("progress.json", "model.safetensors", "strategy.safetensors")
    whole = [(last / name).read_bytes() for name in names]

    def run(data: bytes) -> None:
        which = (data[0] if data else 0) % 3
        (last / names[which]).write_bytes(data[1:])
        try:
            read = load_last(folder)
            assert read is not None
            Progress(round=1 + read.progress.round, missed=1 + read.progress.missed)
        finally:
            (last / names[which]).write_bytes(whole[which])

    seeds = [bytes([which]) + data for which, data in enumerate(whole)]
    mutate = _tagged([change_json, _change_tensors, _change_tensors])
    return Target(run=run, seeds=seeds, mutate=mutate)


def weights(folder: Path) -> Target:
    """The file of a job's ``initial_weights``."""
    options = {"shape": [1, 4, 3], "classes": 2, "model": {"kind": "mlp", "hidden": [2]}}
    path, task = folder / "weights.safetensors", load_task("image", options)
    asked = job(initial_weights=path)

    def run(data: bytes) -> None:
        path.write_bytes(data)
        for name, tensor in initial_weights(task, asked).items():
            assert tensor.shape == task.model().state_dict()[name].shape

    state = task.model().state_dict()
    seeds = [_safetensors(dict(state), path), _safetensors(_TENSORS, path)]
    return Target(run=run, seeds=seeds, mutate=_change_tensors)


def _history() -> bytes:
    site = SiteRound(
        outcome="result",
        seconds=1.0,
        weight=2.0,
        update_norm=0.5,
        metrics={"epsilon": 0.5, "loss": 1.0},
        terms=Terms(count="public", noised=("loss",), noise_multiplier=2.0),
    )
    records = [
        RoundRecord(
            round=number,
            outcome="completed",
            started_at=1.0,
            seconds=2.0,
            sites={"east": site, "west": SiteRound(outcome="missing", seconds=1.0)},
            train={"loss": 1.0},
            federated={"loss": 1.0},
            central={},
            bytes_up=10,
            bytes_down=20,
            judged={"east": site},
        )
        for number in (1, 2)
    ]
    return "".join(json.dumps(asdict(record)) + "\n" for record in records).encode()


def _change_lines(data: bytes, randomness: Random) -> bytes:
    lines = data.split(b"\n")
    at = randomness.randrange(len(lines))
    lines[at] = change_json(lines[at], randomness)
    return b"\n".join(lines)


def workspaces(folder: Path) -> Target:
    """One file of a workspace that tells of its run, the others whole."""
    asked = job()
    Workspace(folder, asked)
    status = Status(phase="training", round=1, rounds=5, connected=("east",), updated_at=1.0)
    awaited = asdict(status) | {"awaited": [asdict(Awaited(site="east", since=1.0, until=2.0))]}
    session = {"round": 1, "token": "a" * 32, "earlier": {"east": 1}, "stages": {"train": ["east"]}}
    (folder / "history.jsonl").write_bytes(_history())
    (folder / "status.json").write_text(json.dumps(awaited), encoding="utf-8")
    (folder / "session.json").write_text(json.dumps(session), encoding="utf-8")
    statement = {"round": 2, "hanse": "0.1.0"}
    (folder / "models" / "last.json").write_text(json.dumps(statement), encoding="utf-8")

    def resume(path: Path) -> None:
        again = Workspace(folder, asked)
        Archive(asked, again).resume()

    def show(path: Path) -> None:
        run_outcome(asked, folder)

    def transcript(path: Path) -> None:
        found = Transcript.resume(path, 1)
        found.decide("train", ["west"])
        found.begin_anew()

    reads: list[tuple[str, tuple[Callable[[Path], object], ...]]] = [
        ("run.json", (resume, lambda path: read_facts(folder))),
        ("history.jsonl", (lambda path: read_facts(folder), show, resume)),
        ("status.json", (lambda path: read_status(folder), lambda path: read_facts(folder))),
        ("session.json", (transcript,)),
        ("models/last.json", (lambda path: read_facts(folder),)),
    ]
    whole = [(folder / name).read_bytes() for name, _ in reads]

    def run(data: bytes) -> None:
        which = (data[0] if data else 0) % len(reads)
        name, attempts = reads[which]
        (folder / name).write_bytes(data[1:])
        try:
            each(*(partial(attempt, folder / name) for attempt in attempts))
        finally:
            (folder / name).write_bytes(whole[which])

    seeds = [bytes([which]) + data for which, data in enumerate(whole)]
    mutate = _tagged([change_json, _change_lines, change_json, change_json, change_json])
    shutil.rmtree(folder / "checkpoints")
    save(folder / "checkpoints", Checkpoint(progress=Progress(round=2), arrays=to_record(_TENSORS)))
    return Target(run=run, seeds=seeds, mutate=mutate)

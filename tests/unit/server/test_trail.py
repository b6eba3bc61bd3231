"""The server's trail: what is told when, what a crash leaves, and what verification makes of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hanse.errors import NotRegisteredError, TrailError, UpdateError, WorkspaceError
from hanse.examples import example
from hanse.flower import (
    METRICS,
    WEIGHT,
    Envelope,
    error_reply,
    open_envelope,
    to_metrics,
    to_record,
)
from hanse.identity import node_id_of
from hanse.job import Job, load_job
from hanse.wire.message import encode
from hanse_server import checkpoint
from hanse_server.archive import Archive
from hanse_server.audit import ServerTrail
from hanse_server.audit.digests import metrics_digest, model_digest
from hanse_server.audit.pace import MOST
from hanse_server.audit.verify import verify_trail
from hanse_server.audit.view import audit_result, audit_view
from hanse_server.checkpoint import Progress
from hanse_server.history import RoundRecord, SiteRound
from hanse_server.workspace import Workspace, audit_path
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from tests.forged import lines_of, told

SITES = ("north", "south")


class Server:
    """A server without a network, from its start to its crash.

    Args:
        folder: the workspace, of before or new.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self.workspace = Workspace(folder, job)
        self.trail = self.workspace.open_trail()
        after = checkpoint.last_round(self.workspace.checkpoints)
        self.trail.started(self.workspace.run_id, job.digest, after)
        self.archive = Archive(job, self.workspace)
        last = self.archive.resume()
        self.progress = Progress() if last is None else last.progress
        for site in SITES:
            self.trail.joined(site, "f" * 64, "0.1.0")

    def round(self, *, sites: tuple[str, ...] = SITES, left_out: str = "") -> None:
        """Ask all sites, have some answer, and keep what came of it."""
        number = self.progress.round + 1
        encoded = encode(RecordDict({"config": ConfigRecord({"round": number})}))
        asked = {site: envelope(site, number) for site in SITES}
        self.trail.instructed((site, each, encoded) for site, each in asked.items())
        for site in sites:
            arrived = {"digest": "d" * 64, "bytes": 3, "blake3": "a" * 64}
            self.trail.answered(site, asked[site], result(asked[site]), **arrived)
        record = RoundRecord(
            round=number,
            outcome="completed",
            started_at=1.0,
            seconds=2.0,
            sites={site: site_round(asked[site], site == left_out) for site in sites},
            train={},
            federated={},
            central={},
            bytes_up=10,
            bytes_down=20,
        )
        arrays = to_record({"w": torch.tensor([float(number)])})
        progress = Progress(round=number)
        self.progress = self.archive.keep(record, arrays, arrays, progress, {})


def envelope(site: str, number: int) -> Envelope:
    return Envelope(
        message_id=f"{site}-{number}",
        run_id=7,
        src_node_id=1,
        dst_node_id=node_id_of(site),
        message_type="train",
        group_id=str(number),
    )


def result(asked: Envelope) -> Message:
    content = RecordDict({METRICS: to_metrics({WEIGHT: 5.0})})
    return Message(content, reply_to=open_envelope(asked, RecordDict()))


def site_round(asked: Envelope, unfit: bool) -> SiteRound:
    outcome = UpdateError.label if unfit else "result"
    return SiteRound(outcome=outcome, seconds=0.1, weight=5.0, reply=asked.message_id)


@pytest.fixture
def job() -> Job:
    return load_job(example("heart") / "job.toml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_what_was_told_of_an_undisturbed_run_holds(folder: Path, job: Job) -> None:
    server = Server(folder, job)
    server.round()
    server.round(sites=("north",))
    server.round(left_out="south")
    server.trail.stopped(None)

    found, account = verify_trail(folder)

    assert (found.rounds, found.folded, found.again) == (3, 4, ())
    assert account.kept[3].folded == {"north-3": "north"}
    (unfit,) = told(lines_of(audit_path(folder)), "left_out")
    assert (unfit["site"], unfit["id"], unfit["label"]) == ("south", "south-3", "update")
    assert account.kept[3].model == model_digest(to_record({"w": torch.tensor([3.0])}))


def test_a_round_is_one_fsync_for_its_instructions_and_one_for_its_end(
    folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(folder, job)
    synced = [0]
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        synced[0] += Path(f"/proc/self/fd/{descriptor}").resolve() == audit_path(folder).resolve()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    encoded = encode(RecordDict())
    asked = [envelope(f"site-{number}", 1) for number in range(1000)]
    server.trail.instructed((f"site-{n}", each, encoded) for n, each in enumerate(asked))
    for number, each in enumerate(asked):
        server.trail.answered(f"site-{number}", each, result(each), digest="d", bytes=1, blake3="a")
    arrays = to_record({"w": torch.zeros(1)})
    record = RoundRecord(
        round=1,
        outcome="completed",
        started_at=1.0,
        seconds=1.0,
        sites={},
        train={},
        federated={},
        central={},
        bytes_up=0,
        bytes_down=0,
    )
    server.trail.kept(record, arrays, arrays)

    assert synced == [2]
    assert len(told(lines_of(audit_path(folder)), "accepted")) == 1000


@pytest.mark.parametrize(
    "step",
    [
        "hanse_server.archive.Archive._keep_models",
        "hanse_server.workspace.Workspace.append",
        "hanse_server.checkpoint.save",
    ],
)
def test_a_crash_in_the_keeping_of_a_round_leaves_what_verifies(
    folder: Path, job: Job, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(folder, job)
    server.round()

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, crash)
        with pytest.raises(KeyboardInterrupt):
            server.round()
    found, _ = verify_trail(folder)
    assert (found.rounds, found.again) == (2, ())  # round 2 may be durable, for all it knows

    again = Server(folder, job)
    assert verify_trail(folder)[0].rounds == 1
    again.round()
    again.round()

    found, _ = verify_trail(folder)
    assert (found.rounds, found.folded, found.again) == (3, 6, (2,))


def test_a_round_is_taken_back_where_a_checkpoint_was_removed(folder: Path, job: Job) -> None:
    server = Server(folder, job)
    for _ in range(3):
        server.round()
    shutil.rmtree(folder / "checkpoints" / "round-00003")
    again = Server(folder, job)
    again.round()

    found, _ = verify_trail(folder)

    assert (found.rounds, found.again) == (3, (3,))


def test_a_torn_line_is_struck(folder: Path, job: Job) -> None:
    Server(folder, job).round()
    path = audit_path(folder)
    path.write_bytes(path.read_bytes() + b'{"event": "insta')

    Server(folder, job).round()

    assert verify_trail(folder)[0].rounds == 2


def test_an_earlier_model_put_in_place_of_the_last_is_found(folder: Path, job: Job) -> None:
    server = Server(folder, job)
    server.round()
    first = (folder / "models" / "last.safetensors").read_bytes()
    server.round()
    (folder / "models" / "last.safetensors").write_bytes(first)

    with pytest.raises(TrailError, match="is of round 1: later ones were completed"):
        verify_trail(folder)


def test_a_model_of_a_dtype_that_no_update_can_have_is_found(folder: Path, job: Job) -> None:
    Server(folder, job).round()
    path = folder / "models" / "last.safetensors"
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    save_file({"w": torch.zeros(1).to(torch.float8_e4m3fn)}, path, metadata)

    with pytest.raises(TrailError, match="holds what no update can"):
        verify_trail(folder)


def test_a_checkpoint_and_a_history_beyond_the_trail_are_found(folder: Path, job: Job) -> None:
    server = Server(folder, job)
    server.round()
    short = audit_path(folder).read_bytes()
    server.round()
    audit_path(folder).write_bytes(short)  # an old copy, whole as far as it goes

    with pytest.raises(TrailError, match=r"history\.jsonl has 2 rounds, the trail 1"):
        verify_trail(folder)
    server.workspace.truncate(1)
    with pytest.raises(TrailError, match="the checkpoint of round 2 is of a round that was never"):
        verify_trail(folder)
    shutil.rmtree(folder / "checkpoints" / "round-00002")
    with pytest.raises(TrailError, match="the trail knows of no round 2"):
        verify_trail(folder)


def test_a_history_that_lacks_rounds_is_found(folder: Path, job: Job) -> None:
    server = Server(folder, job)
    for _ in range(3):
        server.round()
    server.workspace.truncate(1)
    with pytest.raises(TrailError, match=r"the trail has 3 rounds, history\.jsonl 1"):
        verify_trail(folder)


@pytest.fixture
def trail(tmp_path: Path) -> ServerTrail:
    return ServerTrail(tmp_path / "audit.jsonl")


def test_a_site_that_comes_and_goes_cannot_fill_the_disk(
    trail: ServerTrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [0.0]
    monkeypatch.setattr("hanse_server.audit.pace.time.monotonic", lambda: moment[0])
    for _ in range(1000):
        trail.turned_away("stranger", "f" * 64, NotRegisteredError("not registered"))
    trail.left("north", "the other side ended the stream")
    moment[0] = 61.0
    trail.turned_away("stranger", "f" * 64, NotRegisteredError("not registered"))
    trail.flush()

    lines = told(lines_of(tmp_path / "audit.jsonl"), "turned_away")
    assert len(lines) == MOST + 1
    assert lines[-1]["untold"] == 1000 - MOST
    assert "untold" not in lines[0]


def test_what_a_site_says_is_cut_to_size(trail: ServerTrail, tmp_path: Path) -> None:
    asked = open_envelope(envelope("north", 1), RecordDict())
    trail.answered(
        "north", envelope("north", 1), error_reply(NotRegisteredError("x" * 9999), asked)
    )
    trail.joined("north", "f" * 64, "v" * 9999)
    trail.flush()
    refused, joined = lines_of(tmp_path / "audit.jsonl")
    assert len(refused["reason"]) == 500
    assert len(joined["hanse"]) == 32
    assert refused["label"] == "not_registered"


def test_a_full_disk_stops_what_would_be_sent_and_loses_no_line(
    trail: ServerTrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    trail.late("north", "a")
    with monkeypatch.context() as patch:
        patch.setattr("hanse.trail.os.fsync", full)
        trail.catch_up()
        with pytest.raises(WorkspaceError, match="cannot be written: No space left"):
            trail.instructed([("north", envelope("north", 1), encode(RecordDict()))])
        trail.stopped(WorkspaceError("full"))
        assert lines_of(tmp_path / "audit.jsonl") == []
    trail.catch_up()
    assert [line["event"] for line in lines_of(tmp_path / "audit.jsonl")] == ["late", "instructed"]


def test_lines_of_a_site_and_of_a_round(folder: Path, job: Job) -> None:
    server = Server(folder, job)
    server.round()
    server.round(sites=("north",))

    def events(site: str | None, number: int | None) -> list[str]:
        told = audit_result(folder, site=site, number=number, verify=False, against=[])
        return [line["event"] for line in told["lines"]]

    assert events(None, None)[0] == "started"
    assert events("south", None) == ["joined", "instructed", "accepted", "kept", "instructed"]
    assert events("south", 2) == ["instructed"]
    assert events(None, 2) == ["instructed", "instructed", "accepted", "kept"]


def test_what_a_site_says_is_shown_as_it_is(folder: Path, job: Job) -> None:
    server = Server(folder, job)
    asked = envelope("north", 1)
    server.trail.instructed([("north", asked, encode(RecordDict()))])
    said = NotRegisteredError("[/red] \x1b[2J")
    server.trail.answered("north", asked, error_reply(said, open_envelope(asked, RecordDict())))
    server.trail.flush()
    result = audit_result(folder, site=None, number=1, verify=False, against=[])
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(audit_view(result))
    assert "[/red] \\x1b[2J" in captured.get()
    assert "\x1b" not in captured.get()


def test_the_digest_of_a_model_is_that_of_its_contents() -> None:
    tensors = {
        "b": torch.tensor(1.0, dtype=torch.bfloat16),
        "a": torch.zeros(2, 3),
        "n": torch.empty(0, dtype=torch.int64),
        "t": torch.tensor([True]),
    }
    digest = model_digest(to_record(tensors))
    assert model_digest(to_record(dict(reversed(tensors.items())))) == digest
    for other in (
        tensors | {"a": torch.zeros(3, 2)},
        tensors | {"a": torch.zeros(2, 3, dtype=torch.int32)},
        tensors | {"t": torch.tensor([False])},
        {name: tensor for name, tensor in tensors.items() if name != "n"},
    ):
        assert model_digest(to_record(other)) != digest


def test_the_digest_of_a_model_is_not_that_of_how_a_strategy_wrote_it() -> None:
    """Flower's own strategies write arrays by numpy, in the order in which they lie in memory."""
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    written = ArrayRecord({"w": Array(array)})
    assert b"'fortran_order': True" in written["w"].data
    assert model_digest(written) == model_digest(to_record({"w": torch.from_numpy(array)}))


def test_the_digest_of_metrics_outlives_a_file() -> None:
    assert metrics_digest({"m": {"a": 0.1, "b": 2}}) == metrics_digest({"m": {"b": 2, "a": 0.1}})
    assert metrics_digest({"m": {"a": 0.1}}) != metrics_digest({"m": {"a": 0.2}})


def test_a_workspace_without_a_trail_says_so(folder: Path, job: Job) -> None:
    Workspace(folder, job)
    with pytest.raises(TrailError, match="has no audit trail"):
        verify_trail(folder)


def test_nothing_is_told_of_a_simulation() -> None:
    trail = ServerTrail(None)
    trail.started(1, "d", 0)
    trail.late("north", "a")
    trail.flush()
    arrays = ArrayRecord()
    trail.kept(None, arrays, arrays)  # type: ignore[arg-type] # it is not even looked at
    assert trail.read() == []

"""Jobs with encodings: the same model in every engine and on the wire, whoever comes back."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from hanse.aggregation import Encoding
from hanse.encodings import CODECS
from hanse.examples import example
from hanse.flower import CONFIG
from hanse.identity import node_id_of
from hanse.job import Job, load_job
from hanse.task import Examples, NoOptions, Task
from hanse_client.app import make_client_app
from hanse_client.audit import AuditTrail, read_audit
from hanse_client.leftovers import LeftoverStore
from hanse_server.audit import ServerTrail
from hanse_server.checkpoint import load_model
from hanse_server.history import RoundRecord, read_history
from hanse_server.metrics import ServerMetrics
from hanse_server.rounds import RoundLoop
from hanse_server.simulation import EngineName, simulate
from hanse_server.simulation.sites import lay_out, sites_of_folder
from hanse_server.workspace import Workspace
from peft import LoraConfig, get_peft_model
from prometheus_client import CollectorRegistry
from torch import Tensor, nn

from tests.fleet import Fleet, plane_job, plane_site
from tests.loopback import Execute, Loopback, RunningServer

SITES = ("site-0", "site-1", "site-2")
FEW = {"training": {"steps": 2, "batch_size": 10, "optimizer": {"lr": 0.1}}, "rounds": 3}


def job(name: str, **changes: Any) -> Job:
    return plane_job(secure=False, **{"encoding": {"name": name}, **FEW, **changes})


def site(folder: Path, name: str, at: int) -> Execute:
    """A site of the fleet, with what it keeps in files."""
    folder.mkdir(exist_ok=True)
    runtime = plane_site(name, at)
    runtime.leftovers = LeftoverStore(folder / "leftovers")
    runtime.audit = AuditTrail(folder / "audit.jsonl")
    app = make_client_app(lambda _: runtime)
    context = Context(1, node_id_of(name), {"site": name}, RecordDict(), {})
    return lambda message: app(message, context)


def model(folder: Path) -> dict[str, Tensor]:
    return load_model(folder / "models" / "last.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def inline(job: Job, folder: Path) -> dict[str, Tensor]:
    """The model of the same job without a link."""
    Fleet(len(SITES)).loop(job, folder).run()
    return model(folder)


def on_the_wire(server: RunningServer, job: Job, folder: Path) -> dict[str, Tensor]:
    workspace = Workspace(folder, job)
    RoundLoop(job, server.grid(), workspace, server.metrics, lambda _: None).run()
    return model(folder)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_the_wire_ends_with_the_model_of_a_simulation(
    loopback: Loopback, tmp_path: Path, name: str
) -> None:
    asked, trail = job(name), ServerTrail(tmp_path / "trail.jsonl")
    server = loopback.server(trail=trail)
    for at, each in enumerate(SITES):
        loopback.client(each, site(tmp_path / each, each, at))
    server.await_sites(*SITES)
    found = on_the_wire(server, asked, tmp_path / "wire")
    assert same(found, inline(asked, tmp_path / "inline"))
    assert not same(found, inline(job("plain"), tmp_path / "plain"))
    share = {"float16": 0.51, "bfloat16": 0.51, "int8": 0.26, "int4": 0.135, "topk": 0.11}[name]
    for line in read_history(tmp_path / "wire"):
        for told in line["sites"].values():
            assert told["encoding"] == name
            assert 0 < told["bytes"] < share * told["plain_bytes"]
            assert 0 < told["metrics"]["encoding_error"] < 1
    _check_trails(tmp_path, trail)


def _check_trails(folder: Path, trail: ServerTrail) -> None:
    """Both ends write down the digest of the bytes that really travelled."""
    trail.catch_up()
    lines = [json.loads(line) for line in (folder / "trail.jsonl").read_text().splitlines()]
    accepted = {line["id"]: line["blake3"] for line in lines if line.get("blake3")}
    left = {
        line["id"]: line["blake3"]
        for name in SITES
        for line in read_audit(folder / name / "audit.jsonl")
        if line["event"] == "released" and line["blake3"]
    }
    assert len(accepted) == len(SITES) * 3
    assert accepted == left


@pytest.mark.parametrize("name", ["int8", "topk"])
def test_the_engines_end_with_the_same_model(tmp_path: Path, name: str) -> None:
    """Real patient records at four sites, in this process and in workers."""
    folder, models = example("heart"), {}
    asked = load_job(folder / "job-without-privacy.toml").model_copy(
        update={"rounds": 3, "encoding": Encoding(name=name)}
    )
    sites = sites_of_folder(folder).model_copy(update={"waived": True})
    engines: tuple[EngineName, ...] = ("inline", "process")
    for engine in engines:
        workspace = Workspace(tmp_path / engine, asked)
        metrics = ServerMetrics(CollectorRegistry())
        simulate(asked, sites, workspace, metrics, engine=engine, workers=2)
        models[engine] = model(workspace.folder)
    assert same(models["inline"], models["process"])


class Adapted(Task[NoOptions]):
    """A layer that stays as it is, and the adapter that is trained beside it."""

    def model(self) -> nn.Module:
        torch.manual_seed(1)
        base = nn.Sequential(OrderedDict(layer=nn.Linear(60, 60)))
        adapter = LoraConfig(r=2, target_modules=["layer"])
        return get_peft_model(base, adapter)

    def read(self, source: Path) -> Examples:
        numbers = torch.linspace(-1, 1, 1200).reshape(20, 60)
        return Examples((numbers,), numbers.flip(1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"mae": float((outputs - targets).abs().mean())}


@pytest.mark.parametrize("strategy", ["StreamingFedAvg", "FedMedian"])
def test_where_adapters_are_trained_they_alone_travel(tmp_path: Path, strategy: str) -> None:
    """The model is, to the bit, that of whole updates."""
    data, models, bytes_up = tmp_path / "data", [], []
    data.touch()
    for only in (False, True):
        asked = job(
            "plain",
            task={"name": f"{__name__}:Adapted"},
            encoding={"trainable_only": only},
            strategy={"name": strategy, "quorum": 3},
            evaluation={"federated": False},
        )
        folder = tmp_path / str(only)
        folder.mkdir()
        sites = lay_out(asked, data=data, partition_spec="iid", count=3, folder=folder)
        workspace = Workspace(folder / "run", asked)
        simulate(asked, sites, workspace, ServerMetrics(CollectorRegistry()))
        models.append(model(workspace.folder))
        bytes_up.append([line["bytes_up"] for line in read_history(workspace.folder)][-1])
    assert same(*models)
    adapters = [name for name in models[0] if "lora" in name]
    assert len(adapters) == 2
    assert any(bool(models[0][name].any()) for name in adapters if "lora_B" in name)
    assert bytes_up[1] < 0.15 * bytes_up[0]


# --- who is behind ----------------------------------------------------------------------------


def behind(execute: Execute) -> Execute:
    """A site of a version that reads none of the keys by which an encoding is asked for."""

    def answer(message: Message) -> Message:
        config = message.content.config_records[CONFIG]
        known = {key: config[key] for key in config if not key.startswith("hanse.encoding")}
        assert len(known) < len(config)
        message.content[CONFIG] = ConfigRecord(known)
        return execute(message)

    return answer


def test_a_site_that_knows_no_encodings_takes_part(
    loopback: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = job("int8", evaluation={"federated": False})
    server = loopback.server()
    for at, name in enumerate(SITES):
        execute = site(tmp_path / name, name, at)
        loopback.client(name, behind(execute) if at == 0 else execute)
    server.await_sites(*SITES)
    on_the_wire(server, asked, tmp_path / "wire")
    for line in read_history(tmp_path / "wire"):
        assert {name: told["encoding"] for name, told in line["sites"].items()} == {
            "site-0": "plain",
            "site-1": "int8",
            "site-2": "int8",
        }


@pytest.mark.parametrize("knows", [True, False])
def test_a_site_says_what_it_knows_and_the_server_who_does_not(
    loopback: Loopback,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    knows: bool,
) -> None:
    if not knows:
        monkeypatch.setattr("hanse_client.link.desk.CAPABILITIES", ("of tomorrow",))
    with caplog.at_level(logging.WARNING, "hanse.link"):
        server = loopback.server(wants={"encoding:int8"})
        loopback.client("site-0", site(tmp_path / "site-0", "site-0", 0))
        server.await_sites("site-0")
    assert ("does not know encoding:int8" in caplog.text) is not knows


# --- who comes back -----------------------------------------------------------------------------


class InterruptionError(Exception):
    """The end of a server's process."""


def test_what_was_left_out_outlives_both_ends(loopback: Loopback, tmp_path: Path) -> None:
    """Server and sites are gone after the second round; the model is the undisturbed one."""
    asked, folder = job("topk", rounds=4), tmp_path / "wire"

    def enter() -> list[Any]:
        return [
            loopback.client(name, site(tmp_path / name, name, at)) for at, name in enumerate(SITES)
        ]

    def until_the_second(record: RoundRecord) -> None:
        if record.round == 2:
            raise InterruptionError

    server, clients = loopback.server(), enter()
    server.await_sites(*SITES)
    loop = RoundLoop(
        asked, server.grid(), Workspace(folder, asked), server.metrics, until_the_second
    )
    with pytest.raises(InterruptionError):
        loop.run()
    for client in clients:
        client.stop()
    server.link.stop()

    server, _ = loopback.server(), enter()
    server.await_sites(*SITES)
    found = on_the_wire(server, asked, folder)
    assert same(found, inline(asked, tmp_path / "inline"))


def test_without_what_was_left_out_the_model_is_another(tmp_path: Path) -> None:
    """So that the test above shows something."""
    asked, fleet = job("topk", rounds=4), Fleet(len(SITES))
    loop = fleet.loop(asked, tmp_path / "forgetful")

    def forget(record: RoundRecord) -> None:
        for each in fleet.sites.values():
            each.leftovers = LeftoverStore(None)

    loop._on_round = forget
    loop.run()
    assert not same(model(tmp_path / "forgetful"), inline(asked, tmp_path / "inline"))

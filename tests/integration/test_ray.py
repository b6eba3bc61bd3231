"""The engine on Ray: a cluster of several nodes, of which one is lost; workers that die."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import ray
import torch
from hanse.errors import JobError, UnreachableError
from hanse.examples import example
from hanse.job import Job, load_job
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.simulate import SimulationRequest, run_simulation
from hanse_server.simulation import ray_engine
from hanse_server.simulation.cluster import RayCluster
from hanse_server.simulation.ray_engine import RayEngine
from ray.cluster_utils import Cluster

HEART = example("heart")


class Nodes:
    """A cluster of three nodes on this machine, each with processes of its own."""

    def __init__(self) -> None:
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20}
        head = {**node, "include_dashboard": False}
        self._cluster = cast(Any, Cluster(initialize_head=True, head_node_args=head))
        self._others = [self._cluster.add_node(**node) for _ in range(2)]
        self.address: str = self._cluster.address
        self.head: str = self._cluster.head_node.node_id

    def shutdown(self) -> None:
        """End all of it."""
        self._cluster.shutdown()

    def kill(self, node_id: str) -> None:
        """kill -9 of all processes of a node."""
        node = next(each for each in self._others if each.node_id == node_id)
        self._others.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Nodes()
        yield started
        started.shutdown()


def job(*, private: bool = False, rounds: int = 3) -> Job:
    name = "job.toml" if private else "job-without-privacy.toml"
    return load_job(HEART / name).model_copy(update={"rounds": rounds})


def run(asked: Job, folder: Path, **request: Any) -> list[dict[str, Any]]:
    waived = not asked.privacy.private
    whole = {"data": None, "sites": 4, "partition": str(HEART), "waived": waived, **request}
    run_simulation(asked, SimulationRequest(**whole), folder)
    return read_history(folder)


def on(nodes: Nodes) -> dict[str, Any]:
    return {"engine": "ray", "workers": 3, "ray": RayCluster(address=nodes.address)}


def outcomes(history: list[dict[str, Any]]) -> list[set[str]]:
    return [{site["outcome"] for site in line["sites"].values()} for line in history]


class Spy:
    """Watches what an engine submits, and does something after a submission."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, strike: Any) -> None:
        self.submissions = 0
        self.executions: list[int] = []
        submit = RayEngine._submit

        def watched(engine: RayEngine, rank: int, message: Any, *, executions: int) -> None:
            submit(engine, rank, message, executions=executions)
            self.submissions += 1
            self.executions.append(executions)
            strike(self, engine, rank, message)

        monkeypatch.setattr(RayEngine, "_submit", watched)


def test_a_node_killed_in_a_round_changes_nothing_of_the_model(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    killed: list[str] = []
    put = ray.put

    def counted(value: bytes) -> Any:
        stored.append(len(value))
        return put(value)

    def kill_a_node(spy: Spy, engine: RayEngine, rank: int, message: Any) -> None:
        if message.metadata.group_id != "2" or killed:
            return
        where = ray.get(engine._workers[rank].placed)
        if where != nodes.head:
            killed.append(where)
            nodes.kill(where)

    monkeypatch.setattr(ray, "put", counted)
    spy = Spy(monkeypatch, kill_a_node)
    inline = run(job(), tmp_path / "inline")
    history = run(job(), tmp_path / "ray", **on(nodes))

    assert killed
    assert max(spy.executions) > 1, "nothing was under way when the node was killed"
    assert outcomes(history) == [{"result"}] * 3
    for ours, theirs in zip(history, inline, strict=True):  # means, in the order of arrival
        assert ours["federated"] == pytest.approx(theirs["federated"], rel=1e-12)
    assert len(stored) == 4  # the first model, and that of each round
    models = [
        load_model(tmp_path / name / "models" / "last.safetensors") for name in ("inline", "ray")
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_site_whose_worker_is_lost_forgets_nothing_that_it_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster that is started for the run."""

    def kill(spy: Spy, engine: RayEngine, rank: int, message: Any) -> None:
        number, execution = message.metadata.group_id, engine._at_work[rank][1]
        if engine._sites[message.metadata.dst_node_id] == "hungary" and (
            (number == "2" and execution == 1) or number == "3"
        ):
            monkeypatch.setattr(ray_engine, "MOST_EXECUTIONS", {"2": 2, "3": 1}[number])
            ray.kill(engine._workers[rank].actor)

    noisy = job(private=True)
    privacy = noisy.privacy.model_copy(update={"target_epsilon": None, "noise_multiplier": 8.0})
    strategy = noisy.strategy.model_copy(update={"quorum": 3})
    evaluation = noisy.evaluation.model_copy(update={"federated": False, "select": "last"})
    changes = {"privacy": privacy, "strategy": strategy, "evaluation": evaluation}
    noisy = noisy.model_copy(update=changes)
    inline = run(noisy, tmp_path / "inline")
    spy = Spy(monkeypatch, kill)
    history = run(noisy, tmp_path / "ray", engine="ray", workers=2)

    assert max(spy.executions) == 2
    for site in history[0]["sites"]:
        ours, theirs = ([line["sites"][site] for line in lines] for lines in (history, inline))
        told = [each["metrics"].get("epsilon") for each in ours]
        should = [each["metrics"]["epsilon"] for each in theirs]
        if site == "hungary":  # whose message of round 3 killed as many workers as it may
            assert ours[2]["outcome"] == "client_app"
            should[2] = None
        assert told == should


def test_what_the_cluster_lacks_is_told(nodes: Nodes, tmp_path: Path) -> None:
    address = nodes.address
    with pytest.raises(JobError, match="GPUs each do not fit"):
        run(job(), tmp_path / "a", engine="ray", ray=RayCluster(address=address, gpus=0.5))
    with pytest.raises(UnreachableError, match="no Ray cluster"):
        run(job(), tmp_path / "b", engine="ray", ray=RayCluster(address="127.0.0.1:1"))

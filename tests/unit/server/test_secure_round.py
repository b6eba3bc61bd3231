"""A secure round at the server: the sum, and nothing but the sum."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MessageType
from hanse.aggregation import SUMMING
from hanse.errors import JobError, QuorumError, StrategyError
from hanse.flower import ARRAYS, METRICS, WEIGHT, to_record, to_tensors
from hanse.job import Job, load_job
from hanse.secagg.fixed_point import FixedPoint
from hanse.secagg.messages import KEYS, SHARES, SURVIVORS, UNMASK
from hanse_client.secagg import session
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.secagg.round import PHASES
from hanse_server.secagg.training import _check_summable
from hanse_server.status import Status
from hanse_server.strategies import FLOWER
from hanse_server.updates import specs_of
from pydantic import ValidationError
from scipy import stats

from tests.fleet import Fleet, plane_job

STAGES = (KEYS, SHARES, MessageType.TRAIN, SURVIVORS, UNMASK)


def trained(fleet: Fleet, job: Job, folder: Path) -> dict[str, torch.Tensor]:
    fleet.loop(job, folder).run()
    return load_model(folder / "models" / "last.safetensors")


def outcomes(folder: Path) -> dict[str, str]:
    return {name: site["outcome"] for name, site in read_history(folder)[-1]["sites"].items()}


# --- the sum ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "lost"), [(KEYS, 0), *product(STAGES, (1, 2))])
def test_the_model_is_that_of_a_plain_round(stage: str, lost: int, tmp_path: Path) -> None:
    """Of six sites two may be lost, at whichever stage: the same as if they had not trained."""
    secure, plain = Fleet(6), Fleet(6)
    gone = secure.names[1 : 1 + lost]
    secure.engine.lose = {(stage, name) for name in gone}
    in_the_sum = stage in (SURVIVORS, UNMASK)
    plain.engine.lose = set() if in_the_sum else {(MessageType.TRAIN, name) for name in gone}
    summed = trained(secure, plane_job(secure=True), tmp_path / "secure")
    expected = trained(plain, plane_job(secure=False), tmp_path / "plain")
    step = FixedPoint(sites=6, range=8.0).step
    for name, value in expected.items():
        assert (summed[name] - value).abs().max() <= 6 * step
    missing = set() if in_the_sum else set(gone)
    assert outcomes(tmp_path / "secure") == {
        name: "missing" if name in missing else "result" for name in secure.names
    }


@pytest.mark.parametrize("strategy", ["StreamingFedAvg", "FedAvgM", "FedAdam", "FedProx"])
def test_strategies_that_sum_end_with_their_plain_models(strategy: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"StreamingFedAvg": {"momentum": 0.5, "average_from": 2}}
    options |= {"FedProx": {"proximal_mu": 0.1}}
    choice = {"name": strategy, "options": options.get(strategy, {}), "quorum": 3}
    models = [
        trained(
            Fleet(3),
            plane_job(secure=secure, rounds=2, strategy=choice),
            tmp_path / str(secure),
        )
        for secure in (True, False)
    ]
    close = 1e-3 if strategy == "FedAdam" else 1e-6  # it divides by what may be close to nothing
    for name, value in models[1].items():
        assert (models[0][name] - value).abs().max() <= close


@pytest.mark.parametrize("stage", STAGES)
def test_one_too_many_lost_is_a_round_missed_by_name(stage: str, tmp_path: Path) -> None:
    fleet = Fleet(6)
    fleet.engine.lose = {(stage, name) for name in fleet.names[:3]}
    job = plane_job(secure=True, strategy={"quorum": 4, "patience": 1})
    loop = fleet.loop(job, tmp_path)
    loop._resume()
    before = loop._arrays
    with pytest.raises(QuorumError, match="are needed"):
        loop.run()
    (line,) = read_history(tmp_path)
    assert line["outcome"] == "missed_quorum"
    assert set(line["sites"]) == set(fleet.names)
    assert "secure_aggregation" in outcomes(tmp_path).values()
    after = load_model(tmp_path / "models" / "last.safetensors")
    assert all(torch.equal(after[name], value) for name, value in to_tensors(before).items())


def test_fewer_than_the_quorum_are_not_unmasked(tmp_path: Path) -> None:
    fleet = Fleet(6)
    fleet.engine.lose = {(MessageType.TRAIN, "site-0")}
    with pytest.raises(QuorumError, match="5 sites sent an update, 6 are needed"):
        fleet.loop(plane_job(secure=True, strategy={"quorum": 6, "patience": 1}), tmp_path).run()
    assert not fleet.engine.of(SURVIVORS)
    assert not fleet.engine.of(UNMASK)


def test_the_next_round_begins_anew(tmp_path: Path) -> None:
    fleet = Fleet(4)
    fleet.loop(plane_job(secure=True, rounds=3), tmp_path).run()
    assert [line["outcome"] for line in read_history(tmp_path)] == ["completed"] * 3


def test_the_metrics_are_the_weighted_means(tmp_path: Path) -> None:
    fleet = Fleet(3)
    fleet.loop(plane_job(secure=True), tmp_path).run()
    (line,) = read_history(tmp_path)
    sites = line["sites"].values()
    expected = sum(s["weight"] * s["metrics"]["train_loss"] for s in sites) / 6
    assert line["train"]["train_loss"] == pytest.approx(expected)


def test_the_status_names_the_stage_and_the_sites(tmp_path: Path) -> None:
    fleet = Fleet(3)
    loop = fleet.loop(plane_job(secure=True), tmp_path)
    shown: list[Status] = []

    def show(status: Status | Callable[[], Status]) -> None:
        shown.append(status() if callable(status) else status)

    loop._teller._status.show = show  # type: ignore[method-assign]
    loop.run()
    for phase in PHASES.values():
        awaited = [{each.site for each in s.awaited} for s in shown if s.phase == phase]
        assert set(fleet.names) in awaited, phase


def test_a_site_that_will_not_is_lost_by_its_label(tmp_path: Path) -> None:
    fleet = Fleet(4)
    fleet.sites["site-1"] = Fleet(4, tasks=()).sites["site-1"]
    fleet.loop(plane_job(secure=True), tmp_path).run()
    (line,) = read_history(tmp_path)
    assert outcomes(tmp_path)["site-1"] == "policy"
    assert line["sites"]["site-1"]["reason"].startswith("agreeing_on_masks: ")
    assert "policy.tasks" in line["sites"]["site-1"]["reason"]


def test_an_update_that_is_not_masked_integers_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(4)
    whole = fleet.engine.execute

    def meddled(messages: Any) -> Any:
        for reply in whole(messages):
            if fleet.engine.of(MessageType.TRAIN).get("site-2") is reply:
                arrays = to_tensors(reply.content.array_records[ARRAYS])
                floats = {key: value.to(torch.int64).float() for key, value in arrays.items()}
                reply.content[ARRAYS] = to_record(floats)
            yield reply

    monkeypatch.setattr(fleet.engine, "execute", meddled)
    fleet.loop(plane_job(secure=True), tmp_path).run()
    assert outcomes(tmp_path)["site-2"] == "update"


# --- nothing but the sum ------------------------------------------------------------------------


def looks_random(arrays: ArrayRecord, update: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Bytes uniform (chi-square), words uniform (Kolmogorov-Smirnov), no trace of the update."""
    tensors = to_tensors(arrays)
    words = np.concatenate([tensors[name].numpy().ravel() for name in sorted(tensors)])
    bytes_ = np.bincount(words.view(np.uint8), minlength=256)
    uniform = stats.kstest(words / 2.0**32, "uniform").pvalue
    trace = abs(np.corrcoef(words.view(np.int32).astype(np.float64), update)[0, 1])
    return bool(
        min(stats.chisquare(bytes_).pvalue, uniform) > 1e-6 and trace < 5 / np.sqrt(len(words))
    )


def true_updates(folder: Path, count: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    plain = Fleet(count)
    trained(plain, plane_job(secure=False), folder)
    found = {}
    for name, reply in plain.engine.of(MessageType.TRAIN).items():
        tensors = to_tensors(reply.content.array_records[ARRAYS])
        parts = [tensors[key].double().numpy().ravel() for key in sorted(tensors)]
        found[name] = np.concatenate(parts)
    return found


def test_the_servers_view_of_an_update_is_random(tmp_path: Path) -> None:
    fleet = Fleet(4)
    trained(fleet, plane_job(secure=True), tmp_path / "secure")
    updates = true_updates(tmp_path / "plain", 4)
    for name, reply in fleet.engine.of(MessageType.TRAIN).items():
        assert looks_random(reply.content.array_records[ARRAYS], updates[name]), name


def test_the_statistics_would_see_an_update_without_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "add_mask", lambda *_, **__: None)
    fleet = Fleet(4)
    with pytest.raises(QuorumError):  # the masks that the server removes were never there
        fleet.loop(plane_job(secure=True), tmp_path / "secure").run()
    updates = true_updates(tmp_path / "plain", 4)
    for name, reply in fleet.engine.of(MessageType.TRAIN).items():
        assert not looks_random(reply.content.array_records[ARRAYS], updates[name])


def test_no_two_sites_and_no_two_rounds_share_a_mask(tmp_path: Path) -> None:
    fleet = Fleet(3)
    fleet.loop(plane_job(secure=True, rounds=2), tmp_path).run()
    sent = [
        to_tensors(reply.content.array_records[ARRAYS])["weight"].numpy().astype(np.float64).ravel()
        for kind, _, reply in fleet.engine.replies
        if kind == MessageType.TRAIN
    ]
    off = np.abs(np.corrcoef(sent) - np.eye(6)).max()
    assert off < 5 / np.sqrt(sent[0].size)


def test_no_function_of_a_single_update_leaves(tmp_path: Path) -> None:
    """Not even where the policy releases all there is."""
    fleet = Fleet(3, release_exact=("*",))
    fleet.loop(plane_job(secure=True), tmp_path).run()
    for reply in fleet.engine.of(MessageType.TRAIN).values():
        metrics = reply.content.metric_records[METRICS]
        assert WEIGHT in metrics
        assert "update_norm" not in metrics
    for site in read_history(tmp_path)[-1]["sites"].values():
        assert site["update_norm"] is None


def test_the_statement_says_what_the_server_saw(tmp_path: Path) -> None:
    for secure in (True, False):
        folder = tmp_path / str(secure)
        Fleet(3).loop(plane_job(secure=secure), folder).run()
        stated = json.loads((folder / "models" / "last.json").read_text())["privacy"]
        told = stated["secure_aggregation"]
        assert ("no more than their weighted sum" in told) if secure else told is None


# --- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [name for name in FLOWER if name not in SUMMING])
def test_strategies_that_need_single_updates_are_refused(strategy: str) -> None:
    with pytest.raises(ValidationError, match="needs single updates"):
        plane_job(secure=True, strategy={"name": strategy})
    plane_job(secure=False, strategy={"name": strategy})


def test_the_refusal_is_a_mistake_in_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'name = "x"\nrounds = 1\n[task]\nname = "tabular"\n[training]\nsteps = 1\n'
        '[privacy]\nmechanism = "none"\n[strategy]\nname = "mine:Own"\n'
        "[secure_aggregation]\nenabled = true\n"
    )
    with pytest.raises(JobError, match=r"'mine:Own' needs single updates.*StreamingFedAvg"):
        load_job(tmp_path / "job.toml")


def test_a_model_with_counters_is_refused() -> None:
    model = {"weight": torch.zeros(2), "batches": torch.zeros((), dtype=torch.int64)}
    with pytest.raises(StrategyError, match=r"batches of the model is torch\.int64"):
        _check_summable(specs_of(to_record(model)))


def test_sites_are_told_of_secure_aggregation() -> None:
    plain, secure = plane_job(secure=False), plane_job(secure=True)
    assert plain.digest != secure.digest
    told = Job.model_validate_json(secure.instruction)
    assert told.secure_aggregation == secure.secure_aggregation


def test_a_weight_above_the_jobs_largest_is_left_out_before_it_weighs(tmp_path: Path) -> None:
    """A site that claimed 1e30 would round the updates of all others to nothing."""
    fleet = Fleet(4)
    policy = fleet.sites["site-3"].site.policy.model_copy(update={"count": 1e30})
    fleet.sites["site-3"].site = fleet.sites["site-3"].site.model_copy(update={"policy": policy})
    trained(fleet, plane_job(secure=True, checks={"max_weight": 100.0}), tmp_path)
    assert outcomes(tmp_path) == {
        "site-0": "result",
        "site-1": "result",
        "site-2": "result",
        "site-3": "secure_aggregation",
    }
    (line,) = read_history(tmp_path)
    assert "checks.max_weight" in line["sites"]["site-3"]["reason"]

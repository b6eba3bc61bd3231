"""The ledger of a simulated site, carried by an engine whose workers may die."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hanse.encodings import ENCODING, KEPT
from hanse.examples import example
from hanse.flower import (
    ARRAYS,
    CONFIG,
    JOB,
    ROUND,
    Envelope,
    become_server_app,
    open_envelope,
    to_record,
)
from hanse.identity import node_id_of
from hanse.job import Job, load_job
from hanse.simulation import LEDGER, SimulatedSites
from hanse.task import load_task
from hanse_client.ledger import Ledger
from hanse_client.leftovers import Leftovers, LeftoverStore
from hanse_client.simulation import ROWS, make_app
from hanse_server.simulation.frames import pack_state, unpack_state

SITE = "cleveland"


def job() -> Job:
    whole = load_job(example("heart") / "job.toml")
    privacy = whole.privacy.model_copy(update={"target_epsilon": None, "noise_multiplier": 8.0})
    return whole.model_copy(update={"privacy": privacy})


def app() -> Any:
    sites = SimulatedSites(names=(SITE,), files=(example("heart") / f"{SITE}.toml",))
    return make_app(sites.model_dump_json())


def context(state: RecordDict) -> Context:
    return Context(
        run_id=7, node_id=node_id_of(SITE), node_config={"site": SITE}, state=state, run_config={}
    )


def ask(number: int, **more: float | str) -> Message:
    become_server_app(7)
    asked = job()
    task = load_task(asked.task.name, asked.task.options)
    arrays: ArrayRecord = to_record(task.model().state_dict())
    config = ConfigRecord({JOB: asked.instruction, ROUND: number, **more})
    content = RecordDict({ARRAYS: arrays, CONFIG: config})
    message = Message(content, node_id_of(SITE), "train", group_id=str(number))
    return open_envelope(Envelope.of(message, f"{number:032x}"), content)


def epsilon(reply: Message) -> float:
    assert not reply.has_error(), reply.error
    return float(reply.content.metric_records["metrics"]["epsilon"])  # type: ignore[arg-type]


def fresh() -> RecordDict:
    return RecordDict({LEDGER: ConfigRecord()})


def test_another_worker_goes_on_where_the_last_reply_ended() -> None:
    state, alone = fresh(), app()
    expected = [epsilon(alone(ask(number), context(state))) for number in (1, 2)]
    carried = fresh()
    assert epsilon(app()(ask(1), context(carried))) == expected[0]
    assert epsilon(app()(ask(2), context(carried))) == expected[1] > expected[0]


def test_a_message_that_is_executed_again_is_charged_once() -> None:
    worker, state = app(), fresh()
    first = epsilon(worker(ask(1), context(state)))
    # The reply got lost, and with it the state that came with it; the worker itself lives on.
    again = fresh()
    assert epsilon(worker(ask(1), context(again))) == first
    rows = again.config_records[LEDGER][ROWS]
    assert len(rows) == len(state.config_records[LEDGER][ROWS])  # type: ignore[arg-type]


def test_what_was_left_out_of_an_update_goes_on_elsewhere(monkeypatch: Any) -> None:
    """By the same worker or another, and from where the last reply that came ended."""
    kept: list[Leftovers] = []
    keep = LeftoverStore.keep

    def watched(self: LeftoverStore, leftovers: Leftovers) -> None:
        kept.append(leftovers)
        keep(self, leftovers)

    monkeypatch.setattr(LeftoverStore, "keep", watched)
    asked: dict[str, float | str] = {ENCODING: "topk", KEPT: 0.1}
    worker, state = app(), fresh()
    worker(ask(1, **asked), context(state))
    first = pack_state(state)
    for each in (worker, app(), worker):
        each(ask(2, **asked), context(unpack_state(first)))
    assert kept[0].before == {}
    for later in kept[1:]:
        assert later.before.keys() == kept[0].after.keys() > set()
        for name, tensor in kept[0].after.items():
            assert torch.equal(later.before[name], tensor)


def test_where_nobody_asks_for_it_nothing_is_carried() -> None:
    state = RecordDict()
    app()(ask(1), context(state))
    assert state == RecordDict()


def test_a_refusal_is_carried_too() -> None:
    state = fresh()
    worker = app()
    worker(ask(2), context(state))
    refused = worker(ask(1), context(state))
    assert refused.has_error()
    elsewhere = app()(ask(1), context(state))
    assert elsewhere.error.code == refused.error.code  # of a round before the last


def test_a_ledger_in_a_file_begins_with_what_stands_in_it(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="stands there already"):
        Ledger(tmp_path / "ledger.sqlite", begun=["x"])

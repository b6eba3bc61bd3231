"""The ledger of a simulated site, carried by an engine whose workers may die."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hanse.examples import example
from hanse.flower import ARRAYS, CONFIG, JOB, ROUND, become_server_app, to_record
from hanse.identity import node_id_of
from hanse.job import Job, load_job
from hanse.simulation import LEDGER, SimulatedSites
from hanse.task import load_task
from hanse_client.ledger import Ledger
from hanse_client.simulation import ROWS, make_app

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


def ask(number: int) -> Message:
    become_server_app(7)
    asked = job()
    task = load_task(asked.task.name, asked.task.options)
    arrays: ArrayRecord = to_record(task.model().state_dict())
    config = ConfigRecord({JOB: asked.instruction, ROUND: number})
    content = RecordDict({ARRAYS: arrays, CONFIG: config})
    return Message(content, node_id_of(SITE), "train", group_id=str(number))


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

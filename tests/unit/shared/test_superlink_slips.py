"""Slips: what comes with a message through a SuperLink, and whatever may stand in its place."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from hanse.errors import ProtocolError
from hanse.superlink import MOST_SETTLED, PROTOCOL, SLIP, Slip, read_slip, without_slip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GOOD = {"protocol": PROTOCOL, "id": "a" * 32, "run": 7, "settled": ["b" * 32]}

SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(), st.binary(), st.booleans()
)
LISTS = st.one_of(
    st.lists(st.text()), st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.binary())
)


def content(record: dict[str, Any]) -> RecordDict:
    return RecordDict({SLIP: ConfigRecord(record), "config": ConfigRecord({"x": 1})})


def test_a_slip_comes_back_as_it_was() -> None:
    slip = Slip(instruction="0" * 32, run_id=2**63 - 1, settled=("1" * 32, "2" * 32))
    message = content(dict(slip.record()))
    assert read_slip(message) == slip
    assert without_slip(message) == RecordDict({"config": ConfigRecord({"x": 1})})


def test_a_message_without_one_is_not_of_hanse() -> None:
    with pytest.raises(ProtocolError, match="not of Hanse's ServerApp"):
        read_slip(RecordDict())


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": PROTOCOL + 1},
        {"id": "A" * 32},
        {"id": "a" * 33},
        {"id": "a" * 32 + "\n"},
        {"run": -1},
        {"settled": "b" * 32},
        {"settled": ["b" * 31]},
        {"settled": ["b" * 32] * (MOST_SETTLED + 1)},
    ],
)
def test_a_malformed_slip_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_slip(content(GOOD | change))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(st.sampled_from(sorted(GOOD)), SCALARS | LISTS)
def test_nothing_but_a_protocol_error_comes_of_any_other(key: str, value: Any) -> None:
    try:
        read_slip(content(GOOD | {key: value}))
    except ProtocolError:
        return

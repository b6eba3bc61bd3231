"""What an instruction asks for is read once, and no model is kept by it."""

from __future__ import annotations

import weakref

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from hanse.errors import JobError
from hanse.flower import ARRAYS, CONFIG, ROUND, to_record
from hanse_client.asking import asked_in


def instruction(number: int) -> RecordDict:
    model = to_record({"weight": torch.zeros(3)})
    return RecordDict({ARRAYS: model, CONFIG: ConfigRecord({ROUND: number})})


def test_one_content_is_read_once_and_another_anew() -> None:
    first, second = instruction(1), instruction(2)
    asked = asked_in(first)
    assert asked_in(first) is asked
    assert asked_in(second) is not asked
    assert (asked.server_round, asked_in(second).server_round) == (1, 2)
    assert asked_in(first).server_round == 1


def test_a_content_that_took_the_place_of_another_is_not_taken_for_it() -> None:
    rounds = []
    for number in range(1, 50):
        content = instruction(number)  # mostly where the one before it was
        rounds.append(asked_in(content).server_round)
        del content
    assert rounds == list(range(1, 50))


def test_what_was_read_keeps_no_model() -> None:
    content = instruction(1)
    asked = asked_in(content)
    assert asked.model_bytes > 12
    model = weakref.ref(content[ARRAYS])
    del content
    assert model() is None
    assert asked.server_round == 1


def test_what_is_wrong_is_told_each_time() -> None:
    content = RecordDict({CONFIG: ConfigRecord({})})
    for _ in range(2):
        with pytest.raises(JobError, match="not a whole number"):
            assert asked_in(content).server_round
        with pytest.raises(JobError, match="holds no model"):
            assert asked_in(content).model_bytes

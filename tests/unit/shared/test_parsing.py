"""JSON of others."""

from __future__ import annotations

import pytest
from hanse.parsing import parse_json


def test_json_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe\xfd", "[" * 100_000, "1" * 5000])
def test_all_that_is_wrong_with_it_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)

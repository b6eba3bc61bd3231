"""What is on its way to a crowd stays within bounds."""

from __future__ import annotations

import pytest
import torch
from flwr.app import RecordDict
from hanse.flower import ARRAYS, to_record
from hanse.wire.message import CHUNK_BYTES, chunks_in_parts, encode
from hanse_server.link.exchange import LEAST_CHUNK, ON_THE_WAY, chunk_bytes


@pytest.mark.parametrize("sites", [0, 1, 8, 128, 129, 1000, 2048, 10_000])
def test_the_pieces_of_all_sites_together_are_bounded(sites: int) -> None:
    size = chunk_bytes(sites)
    assert LEAST_CHUNK <= size <= CHUNK_BYTES
    assert size == LEAST_CHUNK or size * sites <= ON_THE_WAY


@pytest.mark.parametrize("most", [1000, 4096, None])
@pytest.mark.parametrize("start", [0, 999, 5000])
def test_a_body_is_whole_in_pieces_of_any_size(most: int | None, start: int) -> None:
    content = RecordDict({ARRAYS: to_record({"a": torch.randn(1500), "b": torch.randn(700)})})
    encoded = encode(content)
    pieces = list(chunks_in_parts(encoded, start, most))

    assert b"".join(part for _, parts in pieces for part in parts) == b"".join(encoded.body)[start:]
    assert all(sum(map(len, parts)) <= (most or CHUNK_BYTES) for _, parts in pieces)
    offsets = [offset for offset, _ in pieces]
    assert offsets == [start + number * (most or CHUNK_BYTES) for number in range(len(pieces))]

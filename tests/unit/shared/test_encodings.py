"""Encodings of updates: what comes back, how far off it is, and what bytes are refused."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array
from hanse.aggregation import Encoding
from hanse.config import validate
from hanse.encodings import (
    CAPABILITIES,
    CODECS,
    asked_for,
    capabilities_for,
    decode,
    encode,
    encoding_of,
)
from hanse.encodings.blocks import BLOCK, pack4, pack8, unpack4, unpack8
from hanse.encodings.sparse import PAGE, pack, unpack
from hanse.errors import JobError
from hanse.flower import to_array
from hanse.job import Job
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from tests.harbour import job

LOSSY = sorted(CODECS)
FLOATS = arrays(
    np.float32,
    st.integers(0, 3 * BLOCK + 5),
    elements=st.floats(-(2.0**15), 2.0**15, width=32, allow_subnormal=False),
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def there_and_back(tensor: Tensor, name: str, **how: Any) -> Tensor:
    array = encode(tensor, Encoding(name=name, **how), draws())
    assert array is not None
    assert encoding_of(array) == name
    return decode(array, tensor.dtype, tuple(tensor.shape))


@settings(max_examples=100)
@given(FLOATS)
def test_int8_and_int4_err_by_less_than_a_step_of_their_block(numbers: Any) -> None:
    flat = torch.from_numpy(numbers)
    for most, pack_, unpack_ in ((127, pack8, unpack8), (7, pack4, unpack4)):
        back = unpack_(pack_(flat, draws()), len(flat))
        for part, came in zip(torch.split(flat, BLOCK), torch.split(back, BLOCK), strict=True):
            step = float(part.abs().max()) / most if len(part) else 0.0
            assert _worst(part, came) <= step * (1 + 1e-4) + 1e-30


def _worst(part: Tensor, came: Tensor) -> float:
    return float((part - came).abs().max()) if len(part) else 0.0


@settings(max_examples=100)
@given(FLOATS, st.sampled_from([0.01, 0.06, 0.07, 0.3, 0.5]))
def test_topk_brings_the_largest_and_no_others(numbers: Any, kept: float) -> None:
    flat = torch.from_numpy(numbers)
    back = unpack(pack(flat, kept, draws()), len(flat))
    most = math.ceil(kept * len(flat))
    largest = flat.abs().sort(descending=True).values[:most]
    told = back != 0
    assert int(told.count_nonzero()) <= most
    if most:
        # Each number is off by less than a step of its block, whose scale is that of the largest.
        step = float(largest[0]) / 127 * (1 + 1e-4)
        assert _worst(back[told], flat[told]) <= step
        left_out = flat[~told].abs()
        assert not len(left_out) or float(left_out.max()) <= max(float(largest[-1]), step)


def test_few_places_are_told_by_number_and_many_by_bits() -> None:
    size = 3 * PAGE + 17
    flat = torch.randn(size, generator=draws())
    for kept, longest in ((0.02, 4 * 4 + 3.1 * 0.02 * size), (0.5, size / 8 + 1.1 * 0.5 * size)):
        data = pack(flat, kept, draws())
        assert len(data) < longest
        told = unpack(data, size) != 0
        threshold = flat.abs().sort(descending=True).values[math.ceil(kept * size) - 1]
        assert bool((flat.abs()[told] >= threshold).all())
        assert int(told.count_nonzero()) > 0.99 * kept * size


@settings(max_examples=100)
@given(FLOATS)
def test_two_byte_floats_are_the_nearest(numbers: Any) -> None:
    flat = torch.from_numpy(numbers)
    for dtype in (torch.float16, torch.bfloat16):
        codec = CODECS[str(dtype).removeprefix("torch.")]
        back = codec.unpack(codec.pack(flat, Encoding(), draws()), len(flat))
        assert torch.equal(back, flat.to(dtype).to(torch.float32))


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3 * BLOCK,), (40, 33), (2, 3, 5, 7), (PAGE + 3,)])
def test_shape_and_dtype_come_back_and_the_bytes_are_fewer(
    name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = torch.randn(shape, generator=draws()).to(dtype)
    array = encode(tensor, Encoding(name=name), draws())
    assert array is not None
    back = decode(array, dtype, shape)
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    share = {"float16": 0.5, "bfloat16": 0.5, "int8": 0.27, "int4": 0.145, "topk": 0.13}[name]
    assert len(array.data) <= share * 4 * tensor.numel()
    assert float((back - tensor).norm() / tensor.norm()) < (0.5 if name == "topk" else 0.25)


@pytest.mark.parametrize("name", LOSSY)
def test_what_gains_nothing_is_left_as_it_is(name: str) -> None:
    asked = Encoding(name=name)
    assert encode(torch.arange(1000), asked, draws()) is None
    assert encode(torch.ones(1000, dtype=torch.bool), asked, draws()) is None
    assert encode(torch.empty(0), asked, draws()) is None
    small = encode(torch.ones(1), asked, draws())
    assert (small is None) == (name not in ("float16", "bfloat16"))
    assert encode(torch.ones(1000).bfloat16(), Encoding(name="float16"), draws()) is None


def test_a_single_number_without_dimensions_travels() -> None:
    assert torch.equal(there_and_back(torch.tensor(1.5), "float16"), torch.tensor(1.5))
    assert encode(torch.tensor([]), Encoding(name="float16"), draws()) is None


def test_a_plain_encoding_leaves_everything_as_it_is() -> None:
    assert encode(torch.ones(1000), Encoding(), draws()) is None
    assert encoding_of(to_array(torch.ones(3))) == "plain"
    assert encoding_of(Array("float32", (1,), "hanse.encoding.of-tomorrow", b"")) == "plain"


@pytest.mark.parametrize(("pack_", "unpack_"), [(pack8, unpack8), (pack4, unpack4)])
def test_stochastic_rounding_is_unbiased(pack_: Any, unpack_: Any) -> None:
    """The mean of n roundings of a step s is within 5 s / sqrt(4 n) of the number."""
    flat = torch.randn(2 * BLOCK + 9, generator=draws(1)) * torch.logspace(-6, 3, 2 * BLOCK + 9)
    randomness, n = draws(2), 4000
    total = torch.zeros(len(flat), dtype=torch.float64)
    for _ in range(n):
        total += unpack_(pack_(flat, randomness), len(flat))
    most = 127 if pack_ is pack8 else 7
    for at, part in enumerate(torch.split(flat, BLOCK)):
        step = float(part.abs().max()) / most
        mean = total[at * BLOCK : at * BLOCK + len(part)] / n
        assert float((mean - part).abs().max()) < 5 * step / math.sqrt(4 * n)


@pytest.mark.parametrize(("pack_", "unpack_"), [(pack8, unpack8), (pack4, unpack4)])
def test_the_rounding_is_a_function_of_its_seed(pack_: Any, unpack_: Any) -> None:
    flat = torch.randn(1000, generator=draws())
    assert pack_(flat, draws(3)) == pack_(flat, draws(3))
    assert pack_(flat, draws(3)) != pack_(flat, draws(4))
    whole = unpack_(pack_(flat, draws(3)), 1000)
    again = unpack_(pack_(whole, draws(5)), 1000)
    assert torch.allclose(whole, again, rtol=1e-5), "what is on the grid stays there"


@pytest.mark.parametrize("name", LOSSY)
def test_numbers_beyond_float16_come_back_infinite_there_only(name: str) -> None:
    back = there_and_back(torch.full((1000,), 1e30), name)
    assert bool(torch.isinf(back).all()) == (name == "float16")


# --- what hostile bytes may be --------------------------------------------------------------


def scales(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def sparse(counts: list[int], places: list[int], *, count: int | None = None) -> bytes:
    """Numbers of a tensor of one page and more that are told by their places."""
    told = len(places) if count is None else count
    head = struct.pack(f"<I{len(counts)}I", told, *counts)
    return head + struct.pack(f"<{len(places)}H", *places) + numbers(len(places))


def bits(mask: int, count: int) -> bytes:
    """Numbers of a tensor of at most eight that are told by bits."""
    return struct.pack("<IB", count, mask) + numbers(count)


def numbers(count: int) -> bytes:
    return scales(1.0) * -(-count // BLOCK) + bytes([127] * count)


LONG = 2 * PAGE + 4


@pytest.mark.parametrize(
    ("name", "count", "data"),
    [
        *[(name, 4, b"") for name in LOSSY],
        ("float16", 4, bytes(7)),
        ("float16", 4, bytes(9)),
        ("int8", 4, scales(1.0) + bytes(3)),
        ("int8", 4, scales(1.0) + bytes(5)),
        ("int8", BLOCK + 1, scales(1.0) + bytes(BLOCK + 1)),  # a block without its scale
        ("int8", 4, scales(1.0, 1.0) + bytes(4)),  # a scale without its block
        ("int8", 4, scales(math.nan) + bytes(4)),
        ("int8", 4, scales(math.inf) + bytes(4)),
        ("int8", 4, scales(-1.0) + bytes(4)),
        ("int8", 4, scales(1.0) + b"\x80" + bytes(3)),
        ("int4", 4, scales(1.0) + b"\x88"),
        ("int4", 4, scales(1.0) + b"\x88\x88\x88"),
        ("int4", 4, scales(1.0) + b"\x80\x88"),
        ("int4", 3, scales(1.0) + b"\x88\x98"),  # something in the half that is left over
        ("int4", 4, scales(math.nan) + b"\x88\x88"),
        ("topk", LONG, sparse([0, 0, 1], [4])),  # beyond the end
        ("topk", LONG, sparse([2, 0, 0], [1, 1])),  # twice
        ("topk", LONG, sparse([2, 0, 0], [2, 1])),  # out of order
        ("topk", LONG, sparse([1, 0, 0], [1, 2])),
        ("topk", LONG, sparse([3, 0, 0], [1, 2])),
        ("topk", LONG, sparse([1, 1], [1, 2])),  # a page less than there are
        ("topk", LONG, sparse([2**32 - 1, 3, 0], [1, 2])),
        ("topk", LONG, sparse([2, 0, 0], [1, 2], count=2**32 - 1)),
        ("topk", LONG, sparse([2, 0, 0], [1, 2])[:-1]),
        ("topk", LONG, sparse([2, 0, 0], [1, 2]) + b"\0"),
        ("topk", 4, bits(0b1100_0000, 1)),
        ("topk", 4, bits(0b1000_0000, 2)),
        ("topk", 4, bits(0b0000_1000, 1)),  # beyond the end
        ("topk", 4, bits(0b1111_1000, 5)),
        ("topk", 4, bits(0b1000_0000, 1)[:-5] + scales(math.nan) + b"\1"),
        ("topk", 4, bits(0b1000_0000, 1)[:-5] + scales(-1.0) + b"\1"),
        ("topk", 4, bits(0b1000_0000, 1)[:-1] + b"\x80"),
        ("topk", 4, bits(0b1000_0000, 1)[:-1]),
        ("topk", 4, b"\1\0\0"),
    ],
)
def test_bytes_that_are_no_encoding_are_refused(name: str, count: int, data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(Array("float32", (count,), f"hanse.encoding.{name}", data), torch.float32, (count,))


@pytest.mark.parametrize(
    ("dtype", "shape", "stype"),
    [
        ("float64", (4,), "hanse.encoding.topk"),
        ("float32", (2, 2), "hanse.encoding.topk"),
        ("float32", (2**40,), "hanse.encoding.topk"),
        ("float32", (4,), "hanse.encoding.of-tomorrow"),
        ("float32", (4,), "numpy.ndarray"),
    ],
)
def test_an_array_of_another_form_is_refused_before_it_takes_memory(
    dtype: str, shape: tuple[int, ...], stype: str
) -> None:
    data = bits(0b1000_0000, 1)
    assert (
        decode(Array("float32", (4,), "hanse.encoding.topk", data), torch.float32, (4,))[0] == 127
    )
    with pytest.raises(ValueError):
        decode(Array(dtype, shape, stype, data), torch.float32, (4,))
    with pytest.raises(ValueError, match="no encoding"):
        decode(Array("int64", (4,), "hanse.encoding.topk", data), torch.int64, (4,))


# --- what a job asks for --------------------------------------------------------------------


def test_a_plain_job_asks_for_nothing() -> None:
    assert asked_for(Encoding()) == {}
    assert capabilities_for(Encoding()) == frozenset()
    assert job().encoding.plain


def test_what_a_job_asks_for_is_among_the_capabilities() -> None:
    for name in LOSSY:
        encoding = Encoding(name=name, trainable_only=True)
        assert capabilities_for(encoding) <= set(CAPABILITIES)
        assert len(capabilities_for(encoding)) == 2
    assert all(len(each) <= 64 for each in CAPABILITIES)


def test_an_encoding_is_no_part_of_what_sites_behind_must_understand() -> None:
    assert job(encoding={"name": "int8"}).instruction == job().instruction


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoding": {"name": "int2"}}, "encoding.name = 'int2'"),
        ({"encoding": {"name": "topk", "kept": 0.9}}, "encoding.kept = 0.9"),
        ({"encoding": {"name": "topk", "kept": 0.0}}, "encoding.kept = 0.0"),
        ({"encoding": {"bits": 8}}, "encoding.bits: unknown key"),
        (
            {"encoding": {"name": "int8"}, "secure_aggregation": {"enabled": True}},
            "leave [encoding] out",
        ),
        (
            {"encoding": {"trainable_only": True}, "secure_aggregation": {"enabled": True}},
            "leave [encoding] out",
        ),
    ],
)
def test_a_mistake_is_told(changes: dict[str, Any], told: str) -> None:
    data = job().model_dump() | changes
    with pytest.raises(JobError) as caught:
        validate(data, Job, JobError, where="job.toml")
    assert told in caught.value.message

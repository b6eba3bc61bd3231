"""RecordDict and Error, to frames and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hanse.digests import arrays_digest
from hanse.errors import WireError
from hanse.flower import Envelope
from hanse.wire import hanse_pb2 as pb
from hanse.wire.assembler import Assembler
from hanse.wire.limits import Limits
from hanse.wire.message import (
    CHUNK_BYTES,
    Encoded,
    chunks,
    content_digest,
    encode,
    make_header,
)
from hypothesis import given, settings
from hypothesis import strategies as st

ENVELOPE = Envelope(
    message_id="0" * 32,
    run_id=2**64 - 1,
    src_node_id=1,
    dst_node_id=2**63 - 1,
    message_type="train",
    group_id="12",
    reply_to="f" * 32,
    created_at=1.5,
    ttl=60.0,
)
LIMITS = Limits(max_body_bytes=10 * CHUNK_BYTES)


def carry(content: RecordDict | Error, limits: Limits = LIMITS) -> Message:
    """A message that went through its frames, each serialised and parsed."""
    encoded = encode(content)
    header = pb.Header.FromString(make_header(encoded, ENVELOPE).SerializeToString())
    assembler = Assembler(header, limits)
    for offset, data in chunks(encoded):
        assembler.add(offset, data)
    return assembler.message()


def arrays(*sizes: int) -> RecordDict:
    made = {
        str(n): Array("uint8", (size,), "raw", bytes([n % 256]) * size)
        for n, size in enumerate(sizes)
    }
    return RecordDict({"arrays": ArrayRecord(made)})


# --- there and back -----------------------------------------------------------------------------

names = st.text(max_size=20)
integers = st.integers(-(2**63), 2**63 - 1)
reals = st.floats(allow_nan=False)
numbers = st.one_of(integers, reals, st.lists(integers), st.lists(reals))
settings_values = st.one_of(
    numbers,
    *(st.one_of(kind, st.lists(kind)) for kind in (st.booleans(), st.text(), st.binary())),
)
array = st.builds(
    lambda dtype, shape, stype, data: Array(dtype, tuple(shape), stype, data),
    names,
    st.lists(st.integers(0, 2**40), max_size=4),
    names,
    st.binary(max_size=200),
)
records = st.one_of(
    st.dictionaries(names, array).map(ArrayRecord),
    st.dictionaries(names, numbers).map(MetricRecord),
    st.dictionaries(names, settings_values).map(ConfigRecord),
)


@settings(deadline=None)
@given(st.dictionaries(names, records))
def test_any_record_dict_comes_back_in_its_order(made: dict[str, Any]) -> None:
    content = RecordDict(made)

    back = carry(content).content

    assert list(back) == list(content)
    for name, record in content.items():
        assert type(back[name]) is type(record)
        assert list(back[name]) == list(record)
        assert back[name] == record
        kinds = [kind_of(value) for value in record.values()]
        assert [kind_of(value) for value in back[name].values()] == kinds


def kind_of(value: object) -> type:
    return Array if isinstance(value, Array) else type(value)


@given(st.integers(-(2**31), 2**31), st.one_of(st.none(), st.text()))
def test_any_error_comes_back(code: int, reason: str | None) -> None:
    assert carry(Error(code, reason)).error == Error(code, reason)


def test_the_envelope_comes_back() -> None:
    metadata = carry(RecordDict()).metadata
    assert Envelope.of(carry(RecordDict()), metadata.message_id) == ENVELOPE


def test_nan_and_infinity_are_carried() -> None:
    content = RecordDict({"m": MetricRecord({"x": [float("nan"), float("inf"), -float("inf")]})})
    values = carry(content).content.metric_records["m"]["x"]
    assert np.array_equal(values, [np.nan, np.inf, -np.inf], equal_nan=True)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, [1, 2**63]])
def test_an_integer_beyond_64_bits_is_refused_by_name(value: Any) -> None:
    content = RecordDict({"m": MetricRecord({"huge": value})})
    with pytest.raises(WireError, match="'huge' cannot be sent"):
        encode(content)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(WireError):
        encode(RecordDict({"c": ConfigRecord({"\ud800": 1})}))


# --- chunks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        (0,),
        (1,),
        (CHUNK_BYTES,),
        (CHUNK_BYTES + 1,),
        (0, CHUNK_BYTES - 1, 0, 2, 0, 3 * CHUNK_BYTES, 0),
        tuple(range(300)),
    ],
)
def test_a_body_is_cut_into_chunks_without_gaps(sizes: tuple[int, ...]) -> None:
    encoded = encode(arrays(*sizes))
    body = b"".join(encoded.body)
    for start in {0, min(1, len(body)), len(body) // 2, len(body)}:
        pieces = list(chunks(encoded, start))
        assert b"".join(data for _, data in pieces) == body[start:]
        assert all(len(data) == CHUNK_BYTES for _, data in pieces[:-1])
        ends = [start, *(offset + len(data) for offset, data in pieces)]
        assert [offset for offset, _ in pieces] == ends[:-1]
    assert carry(arrays(*sizes)).content == arrays(*sizes)


def test_a_body_is_not_copied_and_does_not_depend_on_the_receiver() -> None:
    content = arrays(1000, 2000)
    encoded = encode(content)
    sources = content.array_records["arrays"].values()
    assert all(view.obj is source.data for view, source in zip(encoded.body, sources, strict=True))
    other = Envelope(
        message_id="1" * 32, run_id=1, src_node_id=1, dst_node_id=3, message_type="train"
    )
    one, two = make_header(encoded, ENVELOPE), make_header(encoded, other)
    assert one.content == two.content
    assert one.digest != two.digest


def test_an_assembler_goes_on_under_a_new_header_of_the_same_content() -> None:
    encoded = encode(arrays(3 * CHUNK_BYTES))
    assembler = Assembler(make_header(encoded, ENVELOPE), LIMITS)
    pieces = list(chunks(encoded))
    assembler.add(*pieces[0])
    later = make_header(encoded, Envelope(**{**vars(ENVELOPE), "created_at": 99.0}))

    assert assembler.take_up(later, LIMITS)
    for piece in chunks(encoded, assembler.received):
        assembler.add(*piece)

    assert assembler.message().metadata.created_at == 99.0
    assert not assembler.take_up(make_header(encode(arrays(5)), ENVELOPE), LIMITS)


# --- what is not as it should be ------------------------------------------------------------------


def header_of(described: pb.Content, body_size: int = 0, **fields: Any) -> pb.Header:
    envelope = make_header(Encoded(b"", (), b""), ENVELOPE).envelope
    packed = described.SerializeToString()
    return pb.Header(**{"envelope": envelope, "content": packed, "body_size": body_size, **fields})


def of_arrays(*made: pb.Array) -> pb.Content:
    record = pb.Record(name="arrays", arrays=pb.Arrays(arrays=made))
    return pb.Content(records=pb.Records(records=[record]))


def of_config(*values: pb.Value) -> pb.Content:
    record = pb.Record(name="config", config=pb.Values(values=values))
    return pb.Content(records=pb.Records(records=[record]))


TWICE = pb.Array(name="a")
MALFORMED: dict[str, tuple[Callable[[], pb.Header], str]] = {
    "content": (lambda: header_of(pb.Content(), content=b"\xff\xff"), "malformed"),
    "envelope": (lambda: header_of(pb.Content(), envelope=b"\xff\xff"), "envelope is malformed"),
    "no kind": (lambda: header_of(pb.Content()), "neither records nor an error"),
    "message type": (
        lambda: header_of(pb.Content(), envelope=pb.Envelope(message_type="x").SerializeToString()),
        "Invalid message type",
    ),
    "body over limit": (
        lambda: header_of(of_arrays(pb.Array(name="a", size=2**40)), 2**40),
        f"a body of {2**40} bytes passes the limit, {10 * CHUNK_BYTES}",
    ),
    "sum below": (lambda: header_of(of_arrays(pb.Array(name="a", size=3)), 4), "declare 3 bytes"),
    "sum above": (lambda: header_of(of_arrays(pb.Array(name="a", size=2**40)), 4), "declare"),
    "body of an error": (lambda: header_of(pb.Content(error=pb.Error(code=1)), 4), "declare 0"),
    "two arrays": (lambda: header_of(of_arrays(TWICE, TWICE)), "two arrays"),
    "two values": (lambda: header_of(of_config(pb.Value(name="v"), pb.Value(name="v"))), "two val"),
    "two records": (
        lambda: header_of(pb.Content(records=pb.Records(records=[pb.Record()] * 2))),
        "two records",
    ),
    "long name": (lambda: header_of(of_arrays(pb.Array(name="a" * 2000))), "2000 characters"),
    "long dtype": (lambda: header_of(of_arrays(pb.Array(dtype="a" * 2000))), "2000 characters"),
    "dimensions": (lambda: header_of(of_arrays(pb.Array(shape=[1] * 33))), "33 dimensions"),
    "records": (
        lambda: header_of(
            pb.Content(records=pb.Records(records=[pb.Record(name=str(n)) for n in range(2000)]))
        ),
        "2000 records pass the limit, 1024",
    ),
    "arrays": (
        lambda: header_of(of_arrays(*(pb.Array(name=str(n)) for n in range(100_001)))),
        "100001 arrays pass the limit",
    ),
    "header size": (
        lambda: header_of(of_config(pb.Value(name="v", data=bytes(17_000_000)))),
        "passes the limit, 16000000",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_header_is_refused_before_its_body(what: str) -> None:
    make, message = MALFORMED[what]
    with pytest.raises(WireError, match=message):
        Assembler(make(), LIMITS)


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2**64 - 1))
def test_no_header_does_anything_but_parse_or_be_refused(
    envelope: bytes, content: bytes, size: int
) -> None:
    header = pb.Header(envelope=envelope, content=content, body_size=size)
    try:
        assembler = Assembler(header, LIMITS)
        if assembler.complete:
            assembler.message()
    except WireError:
        return


@pytest.mark.parametrize(
    "content",
    [
        of_config(pb.Value(name="v")),
        pb.Content(records=pb.Records(records=[pb.Record(name="of a later version")])),
        pb.Content(
            records=pb.Records(
                records=[pb.Record(metrics=pb.Values(values=[pb.Value(name="v", text="x")]))]
            )
        ),
    ],
)
def test_a_value_that_its_record_does_not_take_is_refused(content: pb.Content) -> None:
    encoded = Encoded(content.SerializeToString(), (), _digest(content))
    assembler = Assembler(make_header(encoded, ENVELOPE), LIMITS)
    with pytest.raises(WireError, match=r"of a (type|kind)"):
        assembler.message()


def test_chunks_come_in_their_order_and_no_more_than_declared() -> None:
    encoded = encode(arrays(10))
    assembler = Assembler(make_header(encoded, ENVELOPE), LIMITS)
    assembler.add(0, bytes(4))
    for offset, data in ((0, b"x"), (5, b"x"), (4, bytes(7))):
        with pytest.raises(WireError, match="does not go on from byte 4 of 10"):
            assembler.add(offset, data)
    with pytest.raises(WireError, match="ends at byte 4 of 10"):
        assembler.message()


@pytest.mark.parametrize("where", ["body", "content", "envelope", "digest"])
def test_a_changed_byte_anywhere_is_found(where: str) -> None:
    encoded = encode(arrays(10))
    header = make_header(encoded, ENVELOPE)
    body = b"".join(encoded.body)
    if where == "body":
        body = body[:5] + b"\xff" + body[6:]
    elif where == "content":
        header.content = header.content.replace(b"uint8", b"uint9")
    elif where == "envelope":
        header.envelope = header.envelope.replace(b"train", b"query")
    else:
        header.digest = bytes(32)
    assembler = Assembler(header, LIMITS)
    assembler.add(0, body)
    with pytest.raises(WireError, match="changed on the way"):
        assembler.message()


def test_fields_of_a_later_minor_version_are_ignored() -> None:
    encoded = encode(arrays(3))
    packed = make_header(encoded, ENVELOPE).SerializeToString() + b"\xfa\x01\x03new"  # field 31
    assembler = Assembler(pb.Header.FromString(packed), LIMITS)
    assembler.add(0, bytes(3))
    assert assembler.message().content == arrays(3)
    frame = pb.ServerFrame.FromString(b"\xfa\x01\x03new")
    assert frame.WhichOneof("kind") is None


def _digest(content: pb.Content) -> bytes:
    return content_digest(content.SerializeToString(), arrays_digest(()))

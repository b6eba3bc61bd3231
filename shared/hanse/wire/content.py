"""What a message says, as protocol buffers: RecordDict and Error, there and back.

The bytes of arrays are not in it: a descriptor tells name, dtype, shape, Flower's serialisation
type and size of each, so that every array comes back as it was, whatever wrote its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app import Error as FlowerError

from hanse.arrays import BufferArray, size_of
from hanse.errors import WireError
from hanse.parts import Part
from hanse.wire import hanse_pb2 as pb

_SCALARS: dict[type, str] = {
    bool: "flag",
    int: "integer",
    float: "real",
    str: "text",
    bytes: "data",
}
_LISTS: dict[type, tuple[str, Any]] = {
    bool: ("flags", pb.Flags),
    int: ("integers", pb.Integers),
    float: ("reals", pb.Reals),
    str: ("texts", pb.Texts),
    bytes: ("datas", pb.Datas),
}


def describe(content: RecordDict | FlowerError) -> pb.Content:
    """The description of a message's content.

    Raises:
        WireError: if it holds what the wire cannot carry, such as an integer beyond 64 bits.
    """
    if isinstance(content, FlowerError):
        return pb.Content(error=pb.Error(code=content.code, reason=content.reason))
    records = [_describe_record(name, record) for name, record in content.items()]
    return pb.Content(records=pb.Records(records=records))


def arrays_of(content: RecordDict | FlowerError) -> Iterator[Array]:
    """The arrays of a message in the order of its body."""
    if isinstance(content, FlowerError):
        return
    for record in content.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()


def restore(content: pb.Content, bodies: Iterator[Part]) -> RecordDict | FlowerError:
    """The content that was described; ``bodies`` are the bytes of its arrays, in order.

    Raises:
        WireError: if Flower does not accept a value.
    """
    if content.WhichOneof("kind") == "error":
        reason = content.error.reason if content.error.HasField("reason") else None
        return FlowerError(content.error.code, reason)
    try:
        records = {
            record.name: _restore_record(record, bodies) for record in content.records.records
        }
    except TypeError as refused:
        raise WireError(f"a value is of a type that its record does not take: {refused}") from (
            refused
        )
    return RecordDict(records)


def descriptors(content: pb.Content) -> Iterator[pb.Array]:
    """The descriptors of all arrays in the order of the body."""
    for record in content.records.records:
        yield from record.arrays.arrays


# --- records ------------------------------------------------------------------------------


def _describe_record(name: str, record: ArrayRecord | MetricRecord | ConfigRecord) -> pb.Record:
    if isinstance(record, ArrayRecord):
        arrays = [_describe_array(key, array) for key, array in record.items()]
        return pb.Record(name=name, arrays=pb.Arrays(arrays=arrays))
    values = pb.Values(values=[_describe_value(key, value) for key, value in record.items()])
    if isinstance(record, MetricRecord):
        return pb.Record(name=name, metrics=values)
    return pb.Record(name=name, config=values)


def _describe_array(name: str, array: Array) -> pb.Array:
    return pb.Array(
        name=name,
        dtype=array.dtype,
        shape=array.shape,
        stype=array.stype,
        size=size_of(array),
    )


def _describe_value(name: str, value: Any) -> pb.Value:
    try:
        if isinstance(value, list):
            field, kind = _LISTS[_plain_type(value[0])] if value else _LISTS[float]
            return pb.Value(name=name, **{field: kind(values=value)})
        return pb.Value(name=name, **{_SCALARS[_plain_type(value)]: value})
    except (ValueError, TypeError) as refused:
        raise WireError(f"value {name!r} cannot be sent: {refused}") from refused


def _plain_type(value: Any) -> type:
    """The wire's type of a value: numpy's float64, for one, is a float."""
    return next(kind for kind in _SCALARS if isinstance(value, kind))


def _restore_record(
    record: pb.Record, bodies: Iterator[Part]
) -> ArrayRecord | MetricRecord | ConfigRecord:
    kind = record.WhichOneof("kind")
    if kind == "arrays":
        arrays = ArrayRecord()
        for array in record.arrays.arrays:
            arrays[array.name] = BufferArray(
                array.dtype, tuple(array.shape), array.stype, next(bodies)
            )
        return arrays
    if kind == "metrics":
        return MetricRecord(_restore_values(record.metrics))
    if kind == "config":
        return ConfigRecord(_restore_values(record.config))
    raise WireError(f"record {record.name!r} is of a kind that this version does not know")


def _restore_values(values: pb.Values) -> dict[str, Any]:
    restored: dict[str, Any] = {}
    for value in values.values:
        kind = value.WhichOneof("kind")
        if kind is None:
            raise WireError(f"value {value.name!r} is of a type that this version does not know")
        plain = getattr(value, kind)
        restored[value.name] = list(plain.values) if hasattr(plain, "values") else plain
    return restored

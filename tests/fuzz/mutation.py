"""Changes to inputs: of bytes, of JSON-like trees, of protocol buffers."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, 5e-324, float("nan"), float("inf"))
TEXTS = ("", "a", " ", "0", "*", "..", "/", "\n", "\0", "é", "\ud7ff\U0010ffff", "x" * 2000, "nan")
BLOBS = (b"", b"\0", b"\xff" * 8, b"\x93NUMPY\x01\x00", bytes(64), b"-----BEGIN ")


def change_bytes(data: bytes, randomness: Random) -> bytes:
    """Flip, overwrite, remove, double or cut off some of the bytes."""
    changed = bytearray(data)
    for _ in range(randomness.choice((1, 1, 1, 2, 4, 8))):
        at = randomness.randrange(len(changed) + 1)
        end = min(len(changed), at + randomness.choice((1, 1, 2, 4, 16)))
        match randomness.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << randomness.randrange(8)
            case 1:
                changed[at:end] = randomness.randbytes(end - at)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end] * randomness.choice((1, 2, 64))
            case 4:
                changed[at:end] = randomness.choice(BLOBS)
            case 5 if randomness.random() < 0.2:
                del changed[at:]
    return bytes(changed)


# --- trees ----------------------------------------------------------------------------------------


def change_tree(tree: Any, randomness: Random) -> Any:
    """Another value, type, key or length somewhere in a tree of dicts, lists and scalars."""
    tree = json.loads(json.dumps(tree, default=str))
    holders: list[Any] = [tree] if isinstance(tree, dict | list) else []
    for holder in holders:  # grows meanwhile
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [each for each in inner if isinstance(each, dict | list) and each]
    holders = [holder for holder in holders if holder]
    if not holders or randomness.random() < 0.02:
        return odd_value(randomness)
    holder = randomness.choice(holders)
    key: Any = randomness.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    match randomness.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(key) + randomness.choice(TEXTS)] = holder.pop(key)
        case 1 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 2:
            other = randomness.choice(holders)
            holder[key] = json.loads(json.dumps(other))
        case 3 if isinstance(holder[key], str):
            old = holder[key].encode("utf-8", "surrogatepass")
            holder[key] = change_bytes(old, randomness).decode("utf-8", "replace")
        case 3 if isinstance(holder[key], int | float):
            holder[key] = holder[key] * randomness.choice((-1, 0, 0.5, 2, 1_000_000_000))
        case _:
            holder[key] = odd_value(randomness)
    return tree


def odd_value(randomness: Random) -> Any:
    """A scalar or a small tree that nobody expects."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: randomness.choice(INTEGERS),
        lambda: randomness.choice(FLOATS),
        lambda: randomness.choice(TEXTS),
        lambda: randomness.choice(("true", True, False, None)),
        lambda: randomness.choice(([], {}, [[]], {"": {}}, [0] * 100, ["a", 1])),
        lambda: nested(randomness.choice((10, 100))),
    )
    return randomness.choice(kinds)()


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    tree: list[Any] = []
    for _ in range(depth):
        tree = [tree]
    return tree


def change_json(data: bytes, randomness: Random) -> bytes:
    """A change to the tree that JSON text holds; of its bytes, where it holds none."""
    try:
        tree = json.loads(data)
        if randomness.random() < 0.9:
            return json.dumps(change_tree(tree, randomness)).encode()
    except (ValueError, RecursionError):
        pass
    if randomness.random() < 0.02:
        return data + b"[" * 100_000
    return change_bytes(data, randomness)


# --- protocol buffers -----------------------------------------------------------------------------


def change_message(message: Message, randomness: Random) -> None:
    """Set, clear or repeat a field somewhere in a message, in place."""
    at = message
    while True:
        fields = at.ListFields()
        inner = [
            each
            for field, value in fields
            if field.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(field)
            for each in (value if field.is_repeated else (value,))
        ]
        if not inner or randomness.random() < 0.25:
            break
        at = randomness.choice(inner)
    present = [field for field, _ in fields if not _is_map(field)]
    every = [field for field in at.DESCRIPTOR.fields if not _is_map(field)]
    if not every:
        return
    _change_field(at, randomness.choice(present * 4 + every), randomness)


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _change_field(at: Message, field: Any, randomness: Random) -> None:
    if randomness.random() < 0.15:
        at.ClearField(field.name)
    elif field.is_repeated:
        _change_list(getattr(at, field.name), field, randomness)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(at, field.name).SetInParent()
    else:
        setattr(at, field.name, _scalar(field, getattr(at, field.name), randomness))


def _change_list(values: Any, field: Any, randomness: Random) -> None:
    if values and randomness.random() < 0.3:
        del values[randomness.randrange(len(values))]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        added = values.add()
        if len(values) > 1:
            added.CopyFrom(values[randomness.randrange(len(values) - 1)])
    elif values and randomness.random() < 0.5:
        at = randomness.randrange(len(values))
        values[at] = _scalar(field, values[at], randomness)
    else:
        values.append(_scalar(field, values[0] if values else None, randomness))


def _scalar(field: Any, old: Any, randomness: Random) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_DOUBLE:
            return randomness.choice(FLOATS)
        case FieldDescriptor.TYPE_BOOL:
            return not old
        case FieldDescriptor.TYPE_STRING:
            if old and randomness.random() < 0.5:
                return change_bytes(old.encode(), randomness).decode("utf-8", "replace")
            return randomness.choice(TEXTS)
        case FieldDescriptor.TYPE_BYTES:
            if old and randomness.random() < 0.8:
                return change_bytes(old, randomness)
            return randomness.choice(BLOBS)
        case FieldDescriptor.TYPE_SINT64:
            return randomness.choice([each for each in INTEGERS if each < 2**63])
        case FieldDescriptor.TYPE_UINT32:
            return randomness.choice([each for each in INTEGERS if 0 <= each < 2**32])
    near = (old or 0) + randomness.choice((-1, 1, 8))
    return max(0, randomness.choice([near, near, *INTEGERS]))


# --- inputs of several parts ----------------------------------------------------------------------


def pack(parts: list[bytes]) -> bytes:
    """Several byte strings as one input: each after its length in four bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def unpack(data: bytes, most: int) -> list[bytes]:
    """What :func:`pack` packed, whatever became of it; at most ``most`` parts."""
    parts: list[bytes] = []
    while data and len(parts) < most:
        size = int.from_bytes(data[:4], "big")
        parts.append(data[4 : 4 + size])
        data = data[4 + size :]
    return parts

"""Every version of the protocol that was ever released is still understood, and understands.

``tests/contract/vectors`` holds what went over the link, with what it meant.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blake3 import blake3
from google.protobuf import descriptor_pb2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from hanse.config import validate
from hanse.errors import JobError
from hanse.flower import CONFIG, JOB, Envelope
from hanse.job import Job
from hanse.wire import hanse_pb2 as pb
from hanse.wire.content import descriptors
from hanse.wire.message import Encoded, chunks, encode, make_header
from hanse.wire.protocol import MAJOR, MINOR

from tests.contract.dialect import Dialect, Meaning, descriptor_of_today, today
from tests.contract.record_vectors import (
    PLAYS,
    VECTORS,
    Frames,
    descriptor_of,
    message_means,
    messages_of,
    record,
    vector_job,
)

Vector = dict[str, Any]

VERSIONS = sorted(path.name for path in VECTORS.iterdir())
STREAMS = [(version, name) for version in VERSIONS for name in PLAYS]

streams = pytest.mark.parametrize(("version", "name"), STREAMS)


def vector(version: str, name: str) -> Vector:
    read: Vector = json.loads((VECTORS / version / f"{name}.json").read_text())
    return read


def frames(of: Vector) -> Frames:
    return [(each["frame"], base64.b64decode(each["bytes"])) for each in of["frames"]]


def misread(dialect: Dialect, of: Vector) -> list[int]:
    """The frames of a stream that a dialect takes for something else than was meant."""
    wrong = []
    for number, (each, (side, data)) in enumerate(zip(of["frames"], frames(of), strict=True)):
        try:
            if dialect.means(side, data) != each["means"]:
                wrong.append(number)
        except DecodeError:
            wrong.append(number)
    return wrong


def test_the_version_that_is_spoken_has_its_vectors() -> None:
    assert f"{MAJOR}.{MINOR}" in VERSIONS


# --- what was said is understood ------------------------------------------------------------------


@streams
def test_each_frame_means_today_what_it_meant(version: str, name: str) -> None:
    assert misread(today(), vector(version, name)) == []


@streams
def test_each_message_is_put_together_to_what_it_was(version: str, name: str) -> None:
    recorded = vector(version, name)
    made = [message_means(*each) for each in messages_of(frames(recorded))]
    assert json.loads(json.dumps(made)) == recorded["messages"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_vectors_hold_every_field_and_kind_of_frame(version: str) -> None:
    said: set[tuple[str, str]] = set()
    dialect = Dialect.of(descriptor_of(version))
    for name in PLAYS:
        for side, data in frames(vector(version, name)):
            said |= set(_fields(dialect, side, data))
    file = descriptor_of(version)
    every = {(message.name, field.name) for message in file.message_type for field in message.field}
    assert {each for each in every - said if not each[0].endswith("Entry")} == set()


def _fields(dialect: Dialect, kind: str, data: bytes) -> Iterator[tuple[str, str]]:
    """The message and name of each field that is set, messages in bytes included."""
    yield from _set_in(dialect, dialect.messages[kind].FromString(data))


def _set_in(dialect: Dialect, message: Message) -> Iterator[tuple[str, str]]:
    kind = message.DESCRIPTOR
    for field, value in message.ListFields():
        yield kind.name, field.name
        packed = {"envelope": "Envelope", "content": "Content"}
        if kind.name == "Header" and field.name in packed:
            yield from _fields(dialect, packed[field.name], value)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = [value] if isinstance(value, Message) else value
            for each in inner:
                yield from _set_in(dialect, each)


# --- what is said is understood by who speaks an earlier version ----------------------------------


@streams
def test_what_is_encoded_today_meant_the_same_then(version: str, name: str) -> None:
    """Each message of then, encoded by the code of today and read by the contract of then."""
    recorded, then = vector(version, name), Dialect.of(descriptor_of(version))
    for message, _ in messages_of(frames(recorded)):
        encoded = encode(message.error if message.has_error() else message.content)
        header = make_header(encoded, Envelope.of(message, message.metadata.message_id))
        body = b"".join(data for _, data in chunks(encoded))
        side = "SiteFrame" if message.metadata.reply_to_message_id else "ServerFrame"
        made = then.messages[side](header={}).header  # type: ignore[attr-defined]
        meant = _header_of(recorded, message.metadata.message_id)
        header.inline = int(meant["header"].get("inline", 0))
        if "body" in meant["header"]:
            header.body = body
        made.ParseFromString(header.SerializeToString())

        assert meant == then.means(side, then.messages[side](header=made).SerializeToString())
        assert made.digest == _digest(made.envelope, made.content, encoded)


def _header_of(recorded: Vector, message_id: str) -> Meaning:
    return next(
        Meaning(each["means"])
        for each in recorded["frames"]
        if each["means"].get("header", {}).get("envelope", {}).get("message_id") == message_id
    )


def _digest(envelope: bytes, content: bytes, encoded: Encoded) -> bytes:
    """As hanse.proto says in words."""
    body, each, start = b"".join(encoded.body), b"", 0
    for array in descriptors(pb.Content.FromString(content)):
        each += blake3(body[start : start + array.size]).digest()
        start += array.size
    said = len(content).to_bytes(8, "big") + content + blake3(each).digest()
    inner = blake3(said).digest()
    return blake3(envelope + inner).digest()


@streams
def test_what_was_said_can_still_be_said(version: str, name: str) -> None:
    """Each frame, made by today's code from what it meant, and read by the contract of then."""
    then, now = Dialect.of(descriptor_of(version)), today()
    for each in vector(version, name)["frames"]:
        if "header" in each["means"]:
            continue  # made from messages, above
        made = ParseDict(each["means"], now.messages[each["frame"]]())
        assert then.means(each["frame"], made.SerializeToString()) == each["means"]


@pytest.fixture(scope="module")
def spoken_today(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Frames]:
    return record(tmp_path_factory.mktemp("today"))


@streams
def test_a_whole_exchange_of_today_is_understood_by_who_speaks_an_earlier_version(
    version: str, name: str, spoken_today: dict[str, Frames]
) -> None:
    then, now = Dialect.of(descriptor_of(version)), today()
    kinds = {next(iter(each["means"]), "") for each in vector(version, name)["frames"]}
    understood = set()
    for side, data in spoken_today[name]:
        meant, taken = now.means(side, data), then.means(side, data)
        assert _part_of(taken, meant)
        understood.add(next(iter(taken), ""))
    assert kinds - {"heartbeat"} <= understood


def _part_of(less: Any, more: Any) -> bool:
    """Whether nothing is told otherwise, though something may not be told."""
    if isinstance(less, dict) and isinstance(more, dict):
        return all(key in more and _part_of(less[key], more[key]) for key in less)
    if isinstance(less, list) and isinstance(more, list):
        return len(less) == len(more) and all(map(_part_of, less, more))
    return bool(less == more)


# --- the job that an instruction carries ----------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_is_told_to_sites_as_it_was(version: str) -> None:
    """A site refuses keys that it does not know: what is new has to stay out where it is unused."""
    recorded = vector(version, "secure")
    texts = {each["content"][CONFIG][JOB] for each in recorded["messages"] if not each["reply_to"]}
    (text,) = texts
    assert validate(json.loads(text), Job, JobError, where=JOB).instruction == text
    assert vector_job().instruction == text


# --- and a change that must not be made is found --------------------------------------------------


def changed(message: str, field: str, change: Callable[[Any], None]) -> Dialect:
    file = copy.deepcopy(descriptor_of_today())
    (found,) = (
        each
        for kind in file.message_type
        if kind.name == message
        for each in kind.field
        if each.name == field
    )
    change(found)
    return Dialect.of(file)


def renumber(field: descriptor_pb2.FieldDescriptorProto) -> None:
    field.number += 100


EVERY_FIELD = [
    (message.name, field.name)
    for message in descriptor_of_today().message_type
    for field in message.field
]


@pytest.mark.parametrize(("message", "field"), EVERY_FIELD)
def test_a_renumbered_field_is_found(message: str, field: str) -> None:
    dialect = changed(message, field, renumber)
    assert any(misread(dialect, vector("1.0", name)) for name in PLAYS)


def test_a_field_of_another_type_is_found() -> None:
    def retype(field: descriptor_pb2.FieldDescriptorProto) -> None:
        field.type = descriptor_pb2.FieldDescriptorProto.TYPE_UINT64  # sint64 goes in zigzag

    assert misread(changed("Value", "integer", retype), vector("1.0", "plain"))


def test_another_digest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(envelope: bytes, content_digest: bytes) -> bytes:
        return blake3(content_digest + envelope).digest()

    monkeypatch.setattr("hanse.wire.message.message_digest", otherwise)
    with pytest.raises(AssertionError):
        test_what_is_encoded_today_meant_the_same_then("1.0", "plain")


def test_vectors_are_small() -> None:
    for path in VECTORS.rglob("*.json"):
        assert path.stat().st_size < 100_000, path

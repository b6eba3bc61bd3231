"""Sites and servers a minor version ahead or behind, over the real link: the round is the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from flwr.app import RecordDict
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.message import Message
from hanse.errors import HanseError, ProtocolError
from hanse.wire import hanse_pb2 as pb
from hanse.wire import message as wire_message
from hanse.wire.content import describe
from hanse.wire.frames import serialize
from hanse.wire.protocol import MAJOR, MINOR
from hanse_client.link import Coordinator
from hanse_server.checkpoint import load_model
from hanse_server.history import read_history
from hanse_server.link.reception import Reception
from hanse_server.rounds import RoundLoop
from hanse_server.workspace import Workspace

from tests.contract.dialect import Dialect, descriptor_of_today
from tests.contract.record_vectors import descriptor_of, echo, site_of, vector_job
from tests.fleet import Fleet
from tests.loopback import Loopback

SITES = ("site-0", "site-1", "site-2")


def tomorrow() -> Dialect:
    """A minor version ahead: a field more in every message, and a kind more of frames."""
    file = descriptor_of_today()
    text, one = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.LABEL_OPTIONAL
    for message in file.message_type:
        if not message.options.map_entry:
            message.field.add(name="novelty", number=1000, type=text, label=one)
            for inner in message.nested_type:
                assert inner.options.map_entry
    file.message_type.add(name="Novelty").field.add(name="of", number=1, type=text, label=one)
    for message in file.message_type:
        if message.name in ("SiteFrame", "ServerFrame"):
            message.field.add(
                name="unheard_of",
                number=900,
                type=FieldDescriptorProto.TYPE_MESSAGE,
                type_name=".hanse.Novelty",
                label=one,
                oneof_index=0,
            )
    return Dialect.of(file)


TOMORROW = tomorrow()


def embellish(message: Message) -> None:
    """Set what is new in a message and in all within it."""
    message.novelty = "of tomorrow"  # type: ignore[attr-defined]
    for each, value in message.ListFields():
        if each.message_type is None or each.message_type.GetOptions().map_entry:
            continue
        for inner in [value] if isinstance(value, Message) else value:
            embellish(inner)


def ahead(kind: str, data: bytes) -> bytes:
    """A message as a version ahead would have written it."""
    made = TOMORROW.messages[kind].FromString(data)
    embellish(made)
    return made.SerializeToString(deterministic=True)


def behind(kind: str, data: bytes) -> bytes:
    """A message as who knows no more than the first version would have written it."""
    return Dialect.of(descriptor_of("1.0")).makes(kind, data)


class OfTomorrow:
    """Stands for a generated class where messages are encoded: it writes what is new, too."""

    FromString = pb.Envelope.FromString
    DESCRIPTOR: ClassVar[Any] = pb.Envelope.DESCRIPTOR

    def __init__(self, plain: Message | None = None, **fields: Any) -> None:
        self._plain = plain or pb.Envelope(**fields)

    def SerializeToString(self, deterministic: bool = True) -> bytes:
        return ahead(self._plain.DESCRIPTOR.name, self._plain.SerializeToString())


class PbOfTomorrow:
    """``hanse_pb2`` with an envelope of tomorrow."""

    Envelope = OfTomorrow
    Header = pb.Header
    Content = pb.Content


@contextmanager
def encoding_of_tomorrow() -> Iterator[None]:
    """Both sides write envelopes and contents, digests included, as a version ahead."""

    def described(content: RecordDict) -> Any:
        return OfTomorrow(describe(content))

    with (
        patch.object(wire_message, "describe", described),
        patch.object(wire_message, "pb", PbOfTomorrow),
    ):
        yield


@dataclass
class Accent:
    """How one end speaks: ahead, behind, or as today.

    Attributes:
        novelties: frames of a kind that nobody here knows, that were sent.
        change: of its own first frame, or its last.
    """

    frame: type[pb.SiteFrame] | type[pb.ServerFrame]
    version: str = "today"
    novelties: int = 0
    change: dict[str, Any] = field(default_factory=dict)

    def speaks(self, frame: Any) -> list[Any]:
        """The frames that it sends in place of one."""
        kind, name = frame.WhichOneof("kind"), self.frame.__name__
        if kind in ("hello", "welcome"):
            protocol = getattr(frame, kind).protocol
            minor = {"ahead": MINOR + 1, "behind": 0}.get(self.version, protocol.minor)
            protocol.MergeFrom(pb.Protocol(minor=minor, major=self.change.get("major", MAJOR)))
        if kind == "goodbye" and "reason" in self.change:
            frame.goodbye.reason = self.change["reason"]
        if self.version == "today":
            return [frame]
        if self.version == "behind":
            return [self.frame.FromString(behind(name, serialize(frame)))]
        said = [self.frame.FromString(ahead(name, serialize(frame)))]
        if kind != "goodbye":
            novelty = TOMORROW.messages[name](unheard_of={"of": "tomorrow"})
            said.append(self.frame.FromString(novelty.SerializeToString()))
            self.novelties += 1
        return said


class Spoken:
    """One end of a stream, with an accent."""

    def __init__(self, end: Any, accent: Accent) -> None:
        self._end = end
        self._accent = accent

    async def write(self, frame: Any) -> None:
        for each in self._accent.speaks(frame):
            await self._end.write(each)

    async def read(self) -> Any:
        return await self._end.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._end, name)


@contextmanager
def accents(server: Accent, sites: dict[str, Accent]) -> Iterator[None]:
    """Have the server and the sites speak each with its own."""
    stream, connect = Coordinator.stream, Reception.connect

    @asynccontextmanager
    async def streamed(self: Coordinator) -> AsyncIterator[Any]:
        async with stream(self) as call:
            yield Spoken(call, sites.setdefault(self.identity.current().name, Accent(pb.SiteFrame)))

    async def connected(self: Reception, _: Any, context: Any) -> None:
        await connect(self, _, Spoken(context, server))

    with ExitStack() as stack:
        stack.enter_context(patch.object(Coordinator, "stream", streamed))
        stack.enter_context(patch.object(Reception, "connect", connected))
        if "behind" in {each.version for each in (server, *sites.values())}:
            stack.enter_context(patch("hanse.wire.protocol.MINOR", MINOR + 1))
        if "ahead" in {each.version for each in (server, *sites.values())}:
            stack.enter_context(encoding_of_tomorrow())
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The model of the same job without a link."""
    folder = tmp_path_factory.mktemp("plain")
    Fleet(len(SITES)).loop(vector_job(), folder).run()
    return load_model(folder / "models" / "last.safetensors")


@pytest.mark.parametrize(
    ("server", "site"),
    [
        ("today", "ahead"),
        ("ahead", "today"),
        ("ahead", "ahead"),
        ("today", "behind"),
        ("behind", "today"),
    ],
)
def test_a_secure_round_is_the_same_whoever_is_a_minor_version_ahead(
    loopback: Loopback,
    tmp_path: Path,
    undisturbed: dict[str, torch.Tensor],
    server: str,
    site: str,
) -> None:
    job, theirs = vector_job(), Accent(pb.ServerFrame, server)
    sites = {name: Accent(pb.SiteFrame, site) for name in SITES[:2]}  # the third speaks as today
    with accents(theirs, sites):
        running = loopback.server(job=job.name)
        for at, name in enumerate(SITES):
            loopback.client(name, site_of(name, at))
        running.await_sites(*SITES)
        workspace = Workspace(tmp_path / "run", job)
        RoundLoop(job, running.grid(), workspace, running.metrics, lambda _: None).run()

        (line,) = read_history(tmp_path / "run")
        assert {each["outcome"] for each in line["sites"].values()} == {"result"}
        model = load_model(tmp_path / "run" / "models" / "last.safetensors")
        for name, weight in undisturbed.items():
            assert torch.equal(weight, model[name]), name
        if server == "ahead":
            assert theirs.novelties >= 6
        if site == "ahead":
            assert min(sites[name].novelties for name in SITES[:2]) >= 6


def test_a_server_of_another_major_version_is_refused_by_name(loopback: Loopback) -> None:
    with accents(Accent(pb.ServerFrame, change={"major": MAJOR + 1}), {}):
        loopback.server()
        client = loopback.client("site-0", echo)
        error = client.await_end()
    assert isinstance(error, ProtocolError)
    assert f"the coordinator speaks protocol {MAJOR + 1}.{MINOR}" in error.message


def test_a_site_of_another_major_version_is_refused_by_name(loopback: Loopback) -> None:
    sites = {"site-0": Accent(pb.SiteFrame, change={"major": MAJOR + 1})}
    with accents(Accent(pb.ServerFrame), sites):
        server = loopback.server()
        error = loopback.client("site-0", echo).await_end()
    assert isinstance(error, ProtocolError)
    assert f"site 'site-0' speaks protocol {MAJOR + 1}.{MINOR}" in error.message
    assert server.metrics.refused.labels("protocol")._value.get() == 1


def test_a_refusal_by_a_name_of_tomorrow_is_still_a_refusal(loopback: Loopback) -> None:
    theirs = Accent(pb.ServerFrame, "ahead", change={"reason": "eclipsed"})
    with accents(theirs, {}):
        loopback.server()
        error = loopback.client("site-0", echo, registered=False).await_end()
    assert type(error) is HanseError
    assert "not in the server's register" in error.message

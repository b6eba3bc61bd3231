"""A version of the protocol, by its descriptor alone: what frames mean to who speaks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from hanse.wire import hanse_pb2 as pb

PACKAGE = "hanse"

Meaning = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """The messages of one version, by name, without the code that Hanse makes of them."""

    messages: Mapping[str, type[Message]]

    @staticmethod
    def of(file: descriptor_pb2.FileDescriptorProto) -> Dialect:
        """The version that a descriptor describes."""
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        found = {}
        for message in file.message_type:
            descriptor = pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}")
            found[message.name] = message_factory.GetMessageClass(descriptor)
        return Dialect(found)

    def means(self, frame: str, data: bytes) -> Meaning:
        """What the bytes of a frame say, without what is left at its default.

        Args:
            frame: ``SiteFrame`` or ``ServerFrame``.

        Raises:
            DecodeError: if they are no frame.
        """
        meaning = self._plain(self.messages[frame].FromString(data))
        header = meaning.get("header")
        if header is not None:
            packed = self.messages[frame].FromString(data).header  # type: ignore[attr-defined]
            for name, kind in (("envelope", "Envelope"), ("content", "Content")):
                inner = self.messages[kind].FromString(getattr(packed, name))
                header[name] = self._plain(inner)
        return meaning

    def makes(self, frame: str, data: bytes) -> bytes:
        """The frame as who speaks this version would have sent it: it knows no more."""
        made = self.messages[frame].FromString(data)
        made.DiscardUnknownFields()
        return made.SerializeToString()

    @staticmethod
    def _plain(message: Message) -> Meaning:
        return MessageToDict(message, preserving_proto_field_name=True)


def descriptor_of_today() -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of the code that is here."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return file


def today() -> Dialect:
    """What the code that is here speaks."""
    return Dialect({m.name: getattr(pb, m.name) for m in descriptor_of_today().message_type})

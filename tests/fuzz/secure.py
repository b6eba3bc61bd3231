"""What sites and server tell each other in a secure round."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict
from google.protobuf.message import DecodeError
from hanse.errors import SecureAggregationError, WireError
from hanse.flower import to_record
from hanse.secagg.cohort import Announcement, Cohort
from hanse.secagg.messages import (
    SESSION,
    SITES,
    pack_announcement,
    pack_cohort,
    pack_named,
    read_announcement,
    read_bytes,
    read_cohort,
    read_named,
    read_names,
    read_session,
)
from hanse.wire import hanse_pb2 as pb
from hanse.wire.content import describe, restore
from hanse_server.secagg.total import MaskedSum
from hanse_server.updates import TensorSpec

from tests.fuzz.mutation import change_bytes, change_message, pack, unpack
from tests.fuzz.target import Target, each
from tests.maskers import SESSION as ID
from tests.maskers import SHAPES, Maskers, addressed

_SITES = 3
_SPECS = {name: TensorSpec(torch.float32, shape) for name, shape in SHAPES.items()}


def _packed(config: dict[str, Any] | ConfigRecord) -> bytes:
    record = config if isinstance(config, ConfigRecord) else ConfigRecord(config)
    return describe(RecordDict({"config": record})).SerializeToString()


def _config(data: bytes) -> ConfigRecord:
    try:
        content = restore(pb.Content.FromString(data), iter(()))
    except (DecodeError, StopIteration):
        return ConfigRecord()
    if not isinstance(content, RecordDict):
        return ConfigRecord()
    return next(iter(content.config_records.values()), ConfigRecord())


def _change(data: bytes, randomness: Random) -> bytes:
    content = pb.Content()
    try:
        content.ParseFromString(data)
    except DecodeError:
        return change_bytes(data, randomness)
    for _ in range(randomness.choice((1, 1, 2))):
        change_message(content, randomness)
    return content.SerializeToString()


def stage_messages(folder: Path) -> Target:
    """A record of any stage, read as that of every stage."""
    maskers = Maskers(_SITES)
    members = maskers.announce()
    settings = maskers.settings

    def run(data: bytes) -> None:
        config = _config(data)
        each(
            lambda: read_announcement(config, "site-0"),
            lambda: Cohort(ID, read_cohort(config), settings).digest,
            lambda: read_named(config, "shares"),
            lambda: read_names(config, SITES),
            lambda: read_bytes(config, "signature"),
            lambda: read_session(config),
        )

    seeds = [
        _packed(pack_announcement(members[0])),
        _packed(pack_cohort(members)),
        _packed({**pack_named("shares", {"site-1": b"x"}), SESSION: "t"}),
        _packed({SITES: ["site-0", "site-1"], "signature": b"s"}),
    ]
    return Target(run=run, seeds=seeds, mutate=_change)


def hostile_rounds(folder: Path) -> Target:
    """A secure round in which all that comes to one site went through the fuzzer's hands."""
    opened = Maskers(_SITES)
    sample = opened.announce()

    def run(data: bytes) -> None:
        changes = [*unpack(data, 5), b"", b"", b"", b"", b""]
        maskers = Maskers(_SITES)
        members = maskers.announce()
        names = maskers.names
        cohort = [_changed(own, changes[0]) if own.name == "site-1" else own for own in members]
        victim = maskers.sessions["site-0"]
        sealed = {"site-0": victim.share(cohort)}
        sealed |= {name: maskers.sessions[name].share(cohort) for name in names[1:]}
        for change in changes[1:3]:
            sealed["site-1"]["site-0"] = _spoiled(sealed["site-1"]["site-0"], change)
        masked = maskers.mask(names, "site-2")
        left = sorted(masked)
        consents = maskers.consent(left)
        signatures = consents | {"site-1": _spoiled(consents["site-1"], changes[3])}
        revealed = {"site-0": victim.unmask(left, signatures, addressed(sealed, "site-0"))}
        shown = maskers.sessions["site-1"].unmask(left, consents, addressed(sealed, "site-1"))
        revealed["site-1"] = {name: _spoiled(share, changes[4]) for name, share in shown.items()}
        total = MaskedSum(_SPECS)
        for arrays in masked.values():
            total.fold(to_record(arrays))
        terms = Cohort(ID, cohort, maskers.settings)
        total.unmask(terms, list(sealed), left, revealed)
        total.mean(terms, left)

    def mutate(data: bytes, randomness: Random) -> bytes:
        parts = [*unpack(data, 5), b"", b"", b"", b"", b""][:5]
        which = randomness.randrange(5)
        parts[which] = (
            _change(parts[0] or _packed(pack_announcement(sample[1])), randomness)
            if which == 0
            else change_bytes(parts[which] or bytes(2), randomness)
        )
        return pack(parts)

    seeds = [pack([b"", b"", b"", b"", b""]), pack([b"", b"", b"", b"", b"\1\1"])]
    return Target(run=run, seeds=seeds, mutate=mutate)


def _changed(member: Announcement, data: bytes) -> Announcement:
    if not data:
        return member
    try:
        return read_announcement(_config(data), member.name)
    except (SecureAggregationError, WireError):
        return member


def _spoiled(data: bytes, change: bytes) -> bytes:
    """Bytes with others added to them, from their beginning; the first of these cuts them off."""
    if not change:
        return data
    mixed = bytes(a ^ b for a, b in zip(data, change[1:], strict=False))
    return (mixed + data[len(mixed) :])[: len(data) - change[0] % 8]

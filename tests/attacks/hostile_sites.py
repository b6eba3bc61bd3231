"""Attacks by a hostile site: what it does, and the name under which that is refused."""

from __future__ import annotations

import asyncio
import io
import math
import pickle
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ConfigRecord, Error, RecordDict
from hanse.errors import PolicyError
from hanse.flower import TERMS, WEIGHT, Envelope
from hanse.identity import node_id_of
from hanse.wire import hanse_pb2 as pb
from hanse.wire.message import encode
from hanse.wire.protocol import MOST_TOLD, this_protocol
from hanse_client.link.coordinator import make_hello
from hanse_server.link.manners import STREAMS_AT_ONCE
from hanse_server.link.reception import MOST_GREETING
from hanse_server.link.session import STRAYS_AT_ONCE

from tests.attacks.liar import (
    LIAR,
    WIDTH,
    Liar,
    answer,
    enter,
    envelope_of,
    header,
    knock,
    update,
    with_array,
)
from tests.loopback import Loopback

MANY = 5 * STRAYS_AT_ONCE
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


Acting = Coroutine[Any, Any, None]


@dataclass(frozen=True, kw_only=True)
class InARound:
    """What a site answers to an instruction to train; the label is its outcome of the round."""

    does: str
    label: str
    attack: Callable[[Liar, Envelope], Acting]


@dataclass(frozen=True, kw_only=True)
class OnTheStream:
    """What a site says once it was let in; the label is that of the server's last word to it."""

    does: str
    label: str
    attack: Callable[[Liar, Envelope], Acting]


@dataclass(frozen=True, kw_only=True)
class AtTheDoor:
    """How a site tries to get in; it gives the label of what the server says."""

    does: str
    label: str
    attack: Callable[[Loopback], Coroutine[Any, Any, str]]


# --- in a round ---------------------------------------------------------------------------------


def _replies(make: Callable[[], object], **false: object) -> Callable[..., Acting]:
    async def attack(liar: Liar, asked: Envelope) -> None:
        await liar.reply(asked, make(), **false)  # type: ignore[arg-type]

    return attack


async def _cuts_the_body_in_the_header_short(liar: Liar, asked: Envelope) -> None:
    made = _with_body(asked)
    made.body = made.body[:-1]
    await liar.say(header=made)


async def _brings_a_large_body_along(liar: Liar, asked: Envelope) -> None:
    await liar.say(header=_with_body(asked, Array("uint8", (2_000_000,), "raw", b"x" * 2_000_000)))


def _with_body(asked: Envelope, array: Array | None = None) -> pb.Header:
    """A header that holds the whole body of an answer."""
    content = answer() if array is None else with_array(array)
    made = header(asked, content)
    made.body = b"".join(encode(content).body)
    return made


def npy(array: object, **how: object) -> bytes:
    """What numpy writes of an array."""
    written = io.BytesIO()
    np.save(written, array, **how)  # type: ignore[arg-type]
    return written.getvalue()


def _objects() -> Array:
    pickled = npy(np.array([print] * WIDTH, dtype=object), allow_pickle=True)
    return Array("object", (WIDTH,), "numpy.ndarray", pickled)


def _encoded(
    data: bytes, encoding: str = "topk", shape: tuple[int, int] = (1, WIDTH)
) -> RecordDict:
    return with_array(Array("float32", shape, f"hanse.encoding.{encoding}", data))


def _largest(scale: float, places: int, count: int = 1) -> bytes:
    """Numbers of an array of eight as ``topk`` lays them out: a bit for each place."""
    return struct.pack("<IBf", count, places, scale) + bytes([127] * count)


def _damaged(damage: Callable[[pb.Header], None]) -> Callable[..., Acting]:
    async def attack(liar: Liar, asked: Envelope) -> None:
        await liar.reply(asked, answer(), damage)

    return attack


def _declares_more(header: pb.Header) -> None:
    header.body_size += 1


def _other_digest(header: pb.Header) -> None:
    header.digest = bytes(32)


async def _out_of_order(liar: Liar, asked: Envelope) -> None:
    await liar.announce(asked, answer())
    await liar.hear("ack")
    await liar.say(chunk=pb.Chunk(message_id=asked.message_id, offset=7, data=b"x"))


def _with_terms() -> object:
    content = answer(metrics={"loss": 0.5})
    content[TERMS] = ConfigRecord({"noised": ["accuracy"], "noise_multiplier": 50.0})
    return content


def _weighs(weight: float) -> Callable[..., Acting]:
    return _replies(lambda: answer(metrics={WEIGHT: weight}))


def _tells(**metrics: float) -> Callable[..., Acting]:
    return _replies(lambda: answer(metrics=metrics))


IN_A_ROUND = (
    InARound(
        does="sends an array of another shape",
        label="update",
        attack=_replies(lambda: answer(update() | {"weight": torch.ones(WIDTH, 1)})),
    ),
    InARound(
        does="sends an array of another dtype",
        label="update",
        attack=_replies(lambda: answer(update() | {"bias": torch.ones(1).half()})),
    ),
    InARound(
        does="leaves out an array",
        label="update",
        attack=_replies(lambda: answer({"bias": torch.ones(1)})),
    ),
    InARound(
        does="sends an array more than the model has",
        label="wire",
        attack=_replies(lambda: answer(update() | {"more": torch.ones(1)})),
    ),
    InARound(
        does="sends NaN",
        label="update",
        attack=_replies(lambda: answer(update(math.nan))),
    ),
    InARound(
        does="sends infinity",
        label="update",
        attack=_replies(lambda: answer(update(-math.inf))),
    ),
    InARound(
        does="sends an update of a huge norm",
        label="update",
        attack=_replies(lambda: answer(update(1e18))),
    ),
    InARound(
        does="sends fewer bytes than the shape of an array takes",
        label="update",
        attack=_replies(
            lambda: with_array(
                Array("float32", (1, WIDTH), "numpy.ndarray", npy(np.ones((1, 2), np.float32)))
            )
        ),
    ),
    InARound(
        does="sends an array of pickled objects",
        label="update",
        attack=_replies(lambda: with_array(_objects())),
    ),
    InARound(
        does="sends a bare pickle in place of an array",
        label="update",
        attack=_replies(
            lambda: with_array(
                Array("float32", (1, WIDTH), "numpy.ndarray", pickle.dumps({"run": "me"}))
            )
        ),
    ),
    InARound(
        does="sends an array in an encoding that nobody asked for",
        label="update",
        attack=_replies(lambda: _encoded(bytes(WIDTH + 4), "int8")),
    ),
    InARound(
        does="encodes an array with a scale that is NaN",
        label="update",
        attack=_replies(lambda: _encoded(_largest(math.nan, 0x80))),
    ),
    InARound(
        does="encodes more numbers than the array has",
        label="update",
        attack=_replies(lambda: _encoded(_largest(1.0, 0xFF, 9))),
    ),
    InARound(
        does="encodes more numbers than it names places for",
        label="update",
        attack=_replies(lambda: _encoded(_largest(1.0, 0x80, 4))),
    ),
    InARound(
        does="encodes an array of terabytes in a few bytes",
        label="update",
        attack=_replies(lambda: _encoded(_largest(1.0, 0x80), shape=(1, 1 << 40))),
    ),
    InARound(
        does="encodes an update of a huge norm",
        label="update",
        attack=_replies(lambda: _encoded(_largest(1e18, 0x80))),
    ),
    InARound(does="claims no weight", label="update", attack=_weighs(0.0)),
    InARound(does="claims a negative weight", label="update", attack=_weighs(-1.0)),
    InARound(
        does="claims a weight that takes the model over", label="update", attack=_weighs(1e30)
    ),
    InARound(does="tells a metric that is NaN", label="update", attack=_tells(loss=math.nan)),
    InARound(does="tells a metric out of its range", label="update", attack=_tells(accuracy=7.0)),
    InARound(
        does="tells more metrics than anybody reads",
        label="update",
        attack=_tells(**{f"m{number}": 0.5 for number in range(101)}),
    ),
    InARound(
        does="names a metric by a terminal's escape codes",
        label="update",
        attack=_tells(**{ESCAPE: 0.5}),
    ),
    InARound(
        does="says that it has noised a metric that it does not tell",
        label="update",
        attack=_replies(_with_terms),
    ),
    InARound(
        does="sends a body larger than the model",
        label="wire",
        attack=_replies(lambda: answer(update() | {"weight": torch.ones(1, 1_000_000)})),
    ),
    InARound(
        does="sends a part of a body in a header",
        label="wire",
        attack=_cuts_the_body_in_the_header_short,
    ),
    InARound(
        does="sends a body of two megabytes in a header",
        label="wire",
        attack=_brings_a_large_body_along,
    ),
    InARound(
        does="sends a header of a megabyte",
        label="wire",
        attack=_replies(lambda: Error(PolicyError.exit_code, "x" * 1_000_000)),
    ),
    InARound(
        does="gives a reason of escape codes and forged lines",
        label="policy",
        attack=_replies(lambda: Error(PolicyError.exit_code, f"{ESCAPE}\nall is well " * 500)),
    ),
    InARound(
        does="declares more bytes than its arrays have",
        label="wire",
        attack=_damaged(_declares_more),
    ),
    InARound(
        does="sends a body that is not what its digest says",
        label="wire",
        attack=_damaged(_other_digest),
    ),
    InARound(does="sends a body with a gap", label="wire", attack=_out_of_order),
    InARound(
        does="answers under the node id of another site",
        label="wire",
        attack=_replies(lambda: Error(1, ""), src_node_id=node_id_of("east")),
    ),
    InARound(
        does="answers for another run",
        label="wire",
        attack=_replies(lambda: Error(1, ""), run_id=5),
    ),
    InARound(
        does="answers for another round, to seem fresher or older",
        label="wire",
        attack=_replies(lambda: Error(1, ""), group_id="999"),
    ),
)


# --- on the stream ------------------------------------------------------------------------------


async def _answers_for_another(liar: Liar, asked: Envelope) -> None:
    """``asked`` is another site's."""
    await liar.announce(asked, answer())


async def _floods_with_headers(liar: Liar, asked: Envelope) -> None:
    for number in range(MANY):
        await liar.announce(envelope_of(f"{number:032x}"), Error(1, ""))


async def _floods_with_one_header(liar: Liar, asked: Envelope) -> None:
    own = await liar.asked()
    for _ in range(MANY):
        await liar.announce(own, answer())


async def _floods_with_whole_replies(liar: Liar, asked: Envelope) -> None:
    """The first is the reply; all others bring a body that is of no use."""
    own = await liar.asked()
    for _ in range(MANY):
        await liar.say(header=_with_body(own))


async def _floods_with_bodies_in_headers(liar: Liar, asked: Envelope) -> None:
    for number in range(MANY):
        await liar.say(header=_with_body(envelope_of(f"{number:032x}")))


async def _floods_with_chunks(liar: Liar, asked: Envelope) -> None:
    for number in range(MANY):
        await liar.say(chunk=pb.Chunk(message_id=f"{number}", data=b"x" * 1000))


async def _floods_with_empty_chunks(liar: Liar, asked: Envelope) -> None:
    own = await liar.asked()
    await liar.announce(own, answer())
    await liar.hear("ack")
    for _ in range(MANY):
        await liar.say(chunk=pb.Chunk(message_id=own.message_id))


async def _floods_with_heartbeats(liar: Liar, asked: Envelope) -> None:
    for _ in range(MANY):
        await liar.say(heartbeat=pb.Heartbeat())


async def _floods_with_nonsense(liar: Liar, asked: Envelope) -> None:
    for _ in range(MANY):
        await liar.stream.write(pb.SiteFrame.FromString(b"\xfa\x01\x03new"))


async def _greets_twice(liar: Liar, asked: Envelope) -> None:
    await liar.say(hello=make_hello(held=["x" * 32]))


async def _babbles(liar: Liar, asked: Envelope) -> None:
    await liar.say(header=pb.Header(envelope=b"\xff\xff"))


async def _holds_a_slot(liar: Liar, asked: Envelope) -> None:
    own = await liar.asked()
    await liar.announce(own, answer())
    await liar.hear("ack")
    for _ in range(100):  # alive, and nothing else
        await liar.say(heartbeat=pb.Heartbeat())
        await asyncio.sleep(0.1)


ON_THE_STREAM = (
    OnTheStream(
        does="answers the instruction of another site", label="wire", attack=_answers_for_another
    ),
    OnTheStream(
        does="answers what nobody asked, without end", label="wire", attack=_floods_with_headers
    ),
    OnTheStream(
        does="announces one reply over and over", label="wire", attack=_floods_with_one_header
    ),
    OnTheStream(
        does="sends one reply over and over, its body with it",
        label="wire",
        attack=_floods_with_whole_replies,
    ),
    OnTheStream(
        does="sends headers with bodies of replies that nobody asked for",
        label="wire",
        attack=_floods_with_bodies_in_headers,
    ),
    OnTheStream(
        does="sends bodies that nobody asked for", label="wire", attack=_floods_with_chunks
    ),
    OnTheStream(
        does="goes on with a body by chunks of no bytes",
        label="wire",
        attack=_floods_with_empty_chunks,
    ),
    OnTheStream(
        does="sends signs of life without a pause", label="wire", attack=_floods_with_heartbeats
    ),
    OnTheStream(
        does="sends unknown frames without end", label="wire", attack=_floods_with_nonsense
    ),
    OnTheStream(does="says Hello a second time", label="wire", attack=_greets_twice),
    OnTheStream(does="sends an envelope that is none", label="wire", attack=_babbles),
    OnTheStream(
        does="takes its turn to reply, and sends nothing", label="wire", attack=_holds_a_slot
    ),
)


# --- at the door --------------------------------------------------------------------------------


async def _second_session(loopback: Loopback) -> str:
    async with enter(loopback), knock(loopback) as second:
        return await _hello(second)


async def _hello(liar: Liar, **hello: object) -> str:
    await liar.say(hello=make_hello(**hello))
    return await liar.farewell()


async def _unregistered(loopback: Loopback) -> str:
    loopback.issue("stranger", registered=False)
    async with knock(loopback, "stranger") as liar:
        return await _hello(liar)


async def _another_certificate(loopback: Loopback) -> str:
    loopback.issue(LIAR)
    loopback.take_certificate(LIAR, loopback.authority.issue_site(LIAR))
    async with knock(loopback) as liar:
        return await _hello(liar)


async def _says_nothing(loopback: Loopback) -> str:
    async with knock(loopback) as liar:
        await liar.say(heartbeat=pb.Heartbeat())
        return await liar.farewell()


async def _many_silent_streams(loopback: Loopback) -> str:
    async with asyncio.TaskGroup() as group:
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            async with knock(loopback) as liar:
                label = await liar.farewell()
                if label != "protocol" and not told.done():
                    told.set_result(label)

        waiting = [group.create_task(wait()) for _ in range(MOST_GREETING + 1)]
        label = await told
        for each in waiting:
            each.cancel()
    return label


async def _too_much_in_a_hello(loopback: Loopback) -> str:
    async with knock(loopback) as liar:
        return await _hello(liar, held=[f"{number}" for number in range(MOST_TOLD + 1)])


async def _a_version_of_megabytes(loopback: Loopback) -> str:
    async with knock(loopback) as liar:
        hello = pb.Hello(protocol=this_protocol(), versions={"hanse": ESCAPE * 100_000})
        await liar.say(hello=hello)
        return await liar.farewell()


async def _another_protocol(loopback: Loopback) -> str:
    async with knock(loopback) as liar:
        await liar.say(hello=pb.Hello(protocol=pb.Protocol(major=9)))
        return await liar.farewell()


async def _comes_and_goes(loopback: Loopback) -> str:
    for _ in range(STREAMS_AT_ONCE + 10):
        async with knock(loopback) as liar:
            await liar.say(hello=make_hello())
            said = await liar.hear("welcome", "goodbye")
            if isinstance(said, pb.Goodbye) and said.reason != "name_taken":
                return str(said.reason)
    return "nothing"


async def _comes_back_at_once(loopback: Loopback) -> str:
    async with enter(loopback) as liar:
        await _babbles(liar, envelope_of(""))
        await liar.farewell()
    while True:
        async with knock(loopback) as again:
            label = await _hello(again)
            if label != "name_taken":  # the stream before has just ended
                return label


AT_THE_DOOR = (
    AtTheDoor(does="opens a second session", label="name_taken", attack=_second_session),
    AtTheDoor(does="is not registered", label="not_registered", attack=_unregistered),
    AtTheDoor(
        does="shows another certificate of its name than is registered",
        label="not_registered",
        attack=_another_certificate,
    ),
    AtTheDoor(does="begins with anything but a Hello", label="protocol", attack=_says_nothing),
    AtTheDoor(
        does="opens many streams and keeps silent", label="name_taken", attack=_many_silent_streams
    ),
    AtTheDoor(
        does="tells of more instructions than there are", label="wire", attack=_too_much_in_a_hello
    ),
    AtTheDoor(
        does="names a version of megabytes and escape codes",
        label="wire",
        attack=_a_version_of_megabytes,
    ),
    AtTheDoor(does="speaks another protocol", label="protocol", attack=_another_protocol),
    AtTheDoor(does="comes and goes without a pause", label="wire", attack=_comes_and_goes),
    AtTheDoor(
        does="comes back at once after it was sent away", label="wire", attack=_comes_back_at_once
    ),
)

ATTACKS = (*IN_A_ROUND, *ON_THE_STREAM, *AT_THE_DOOR)

"""Encoded updates at the server's desk, and what a site has left out of its own."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from random import Random

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from hanse.aggregation import Encoding
from hanse.encodings import CODECS, encode
from hanse.flower import ARRAYS, open_envelope
from hanse_client.leftovers import Leftovers, LeftoverStore, Owner
from hanse_server.decoding import Travelling, decoded
from hanse_server.updates import TensorSpec, checked_update

from tests.fuzz.frames import ANSWER, CHECKS
from tests.fuzz.mutation import FLOATS, change_bytes
from tests.fuzz.target import Target

NAMES = sorted(CODECS)
SHAPES = ((3, 100), (65_537,), (7,), ())
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_DIGEST = 64


def updates(folder: Path) -> Target:
    """The bytes of one array, after those that say which encoding, dtype and shape it is of."""

    def run(data: bytes) -> None:
        chosen = (*data[:3], 0, 0, 0)
        name = NAMES[chosen[0] % len(NAMES)]
        dtype, shape = DTYPES[chosen[1] % len(DTYPES)], SHAPES[chosen[2] % len(SHAPES)]
        said = str(dtype).removeprefix("torch.")
        array = Array(said, shape, f"hanse.encoding.{name}", data[3:])
        reply = open_envelope(ANSWER, RecordDict({ARRAYS: ArrayRecord({"w": array})}))
        specs = {"w": TensorSpec(dtype, shape)}
        _, reply = decoded(reply, specs, Travelling(Encoding.model_validate({"name": name})))
        checked_update(reply, specs, CHECKS)

    def mutate(data: bytes, randomness: Random) -> bytes:
        if randomness.random() < 0.3 and len(data) > 11:  # a scale, a count
            at = 3 + randomness.choice((0, 0, 4, 8))
            number = randomness.choice((*FLOATS, 1e30, -1e-40))
            odd = struct.pack("<f", number if abs(number) < 3e38 else 3e38)
            return data[:at] + odd + data[at + 4 :]
        return data[:3] + change_bytes(data[3:], randomness)

    draws, seeds = torch.Generator().manual_seed(1), []
    for which, name in enumerate(NAMES):
        for shaped, shape in enumerate(SHAPES[:3]):
            asked = Encoding.model_validate({"name": name})
            array = encode(torch.randn(shape, generator=draws) * 1e-3, asked, draws)
            if array is not None:
                seeds.append(bytes((which, 0, shaped)) + array.data)
    return Target(run=run, seeds=seeds, mutate=mutate)


def leftovers(folder: Path) -> Target:
    """The file of a site, its digest made to fit; what is damaged is dropped."""
    path, owner = folder / "leftovers", Owner(run_id=1, job="a" * 64, encoding="{}")
    tensors = {"w": torch.ones(2, 3), "b": torch.zeros(4)}
    store = LeftoverStore(path)
    after = {name: tensor + 1.0 for name, tensor in tensors.items()}
    store.keep(Leftovers(owner=owner, instruction="a", before=tensors, after=after))
    whole = path.read_bytes()[_DIGEST:]

    def run(data: bytes) -> None:
        path.write_bytes(hashlib.sha256(data).hexdigest().encode() + data)
        for instruction in ("a", "b"):
            found = store.at(owner, instruction, tensors)
            assert all(found[name].shape == tensors[name].shape for name in found)

    return Target(run=run, seeds=[whole], mutate=change_bytes)

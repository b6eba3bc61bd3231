"""Updates as they travelled, made plain again: one reply at a time, and in the model's dtypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from hanse.aggregation import PLAIN, Encoding
from hanse.encodings import decode, encoding_of
from hanse.errors import UpdateError
from hanse.flower import only_arrays, size_of, to_array
from torch import nn

from hanse_server.updates import TensorSpec


@dataclass(frozen=True)
class Travelling:
    """How updates may travel in a job.

    Attributes:
        encoding: what the sites were asked for; plain arrays are taken as well.
        frozen: names of the model's state that an update need not hold: they do not change.
    """

    encoding: Encoding = field(default_factory=Encoding)
    frozen: frozenset[str] = frozenset()

    @staticmethod
    def of(encoding: Encoding, make_model: Callable[[], nn.Module]) -> Travelling:
        """How updates of a task's model may travel, where a job asks for ``encoding``."""
        if not encoding.trainable_only:
            return Travelling(encoding)
        with torch.random.fork_rng(devices=[]):  # its weights are drawn and never used
            model = make_model()
        parameters = model.named_parameters(remove_duplicate=False)
        frozen = (name for name, parameter in parameters if not parameter.requires_grad)
        return Travelling(encoding, frozenset(frozen))


@dataclass(frozen=True)
class Travelled:
    """How one update came.

    Attributes:
        encoding: ``plain``, or the job's if any of its arrays was encoded.
        bytes: of its arrays.
        plain_bytes: those that the whole update has in the model's dtypes.
    """

    encoding: str = PLAIN
    bytes: int = 0
    plain_bytes: int = 0


def decoded(
    reply: Message, specs: Mapping[str, TensorSpec], travelling: Travelling
) -> tuple[Travelled, Message]:
    """How a reply's update came, and the reply with plain arrays.

    What it holds beside the names of ``specs`` is left as it is.

    Raises:
        UpdateError: if it holds no one ArrayRecord, or an array in an encoding that the job does
            not ask for, or one that is not what its encoding says.
    """
    try:
        arrays = only_arrays(reply.content)
    except ValueError as error:
        raise UpdateError(str(error)) from error
    encodings = {name: encoding_of(array) for name, array in arrays.items()}
    asked, sizes = travelling.encoding.name, [size_of(array) for array in arrays.values()]
    odd = next((name for name, each in encodings.items() if each not in (PLAIN, asked)), None)
    if odd is not None:
        raise UpdateError(
            f"array {odd} is encoded as {encodings[odd]}, and the job asks for {asked}"
        )
    encoded = [name for name, each in encodings.items() if each != PLAIN and name in specs]
    travelled = Travelled(
        encoding=asked if encoded else PLAIN,
        bytes=sum(sizes),
        plain_bytes=sum(spec.bytes for spec in specs.values()),
    )
    if encoded:
        plain = {name: _plain(name, arrays[name], specs[name]) for name in encoded}
        (key,) = reply.content.array_records
        record = ArrayRecord({name: plain.get(name, array) for name, array in arrays.items()})
        reply.content = RecordDict({**reply.content, key: record})
    return travelled, reply


def _plain(name: str, array: Array, spec: TensorSpec) -> Array:
    try:
        return to_array(decode(array, spec.dtype, spec.shape))
    except ValueError as unreadable:
        raise UpdateError(f"array {name} cannot be read: {unreadable}") from unreadable

"""What a site has left out of its updates, and still has to send: error feedback that lasts.

It is of one run of one job, the last: kept from round to round and over restarts, and dropped when
another run begins. A file holds two states, before and after the instruction that was answered
last. If that one comes again, as its reply was lost on the way to the outbox, it begins where it
began before, so that nothing is added twice. A reply that the server has left out of its round is
lost with what it held, as a plain one would be; what was left out of it is not.

Its numbers are functions of updates that were charged and released under the same job: never of
another's, which may have been trained without privacy.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hanse.durable import write_file
from hanse.errors import OutboxError
from hanse.parsing import parse_json
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

log = logging.getLogger("hanse.client")

_BEFORE, _AFTER = "before/", "after/"
_DIGEST = 64  # hex digits of SHA-256


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose leftovers they are.

    Attributes:
        job: digest of the work, its privacy included.
        encoding: as JSON.
    """

    run_id: int
    job: str
    encoding: str


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """What was left out, float32, by name, before and after one instruction."""

    owner: Owner
    instruction: str
    before: Mapping[str, Tensor] = field(default_factory=dict)
    after: Mapping[str, Tensor] = field(default_factory=dict)

    def at(self, owner: Owner, instruction: str) -> Mapping[str, Tensor]:
        """Where an instruction begins; nothing if these are another's."""
        if self.owner != owner:
            return {}
        return self.before if self.instruction == instruction else self.after


class LeftoverStore:
    """Where a site keeps them; for one thread.

    Args:
        path: a file, of twice the model's size in float32 at most; None for memory, which is for
            simulations: no instruction comes again there.
        begun: what :meth:`carried` gave of a store in memory that goes on elsewhere.
    """

    def __init__(self, path: Path | None, *, begun: bytes = b"") -> None:
        self._path = path
        self._in_memory = _of_bytes(begun) if begun else None

    def carried(self) -> bytes:
        """What is in memory; empty if nothing is."""
        return b"" if self._in_memory is None else _to_bytes(self._in_memory)

    def at(self, owner: Owner, instruction: str, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is to be added to ``update``, which answers an instruction."""
        kept = self._in_memory if self._path is None else _read(self._path)
        found = {} if kept is None else kept.at(owner, instruction)
        return {
            name: tensor
            for name, tensor in found.items()
            if name in update and tensor.shape == update[name].shape
        }

    def keep(self, leftovers: Leftovers) -> None:
        """Keep what an instruction left out, durably, in place of all else.

        Raises:
            OutboxError: if it cannot be written: then the reply must not leave either.
        """
        if self._path is None:
            self._in_memory = Leftovers(
                owner=leftovers.owner, instruction=leftovers.instruction, after=leftovers.after
            )
            return
        try:
            write_file(self._path, _to_bytes(leftovers))
        except OSError as error:
            raise OutboxError(f"{self._path}: {error.strerror}") from error


def _to_bytes(leftovers: Leftovers) -> bytes:
    tensors = {_BEFORE + name: tensor for name, tensor in leftovers.before.items()}
    tensors |= {_AFTER + name: tensor for name, tensor in leftovers.after.items()}
    head = {"owner": asdict(leftovers.owner), "instruction": leftovers.instruction}
    rest = json.dumps(head).encode() + b"\n" + save(tensors)
    return hashlib.sha256(rest).hexdigest().encode() + rest


def _read(path: Path) -> Leftovers | None:
    """What a file holds; None if there is none, or it is damaged, which costs accuracy only."""
    try:
        return _of_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as damaged:
        log.warning("%s is dropped, and what it had left out is lost: %s", path, damaged)
        return None


def _of_bytes(data: bytes) -> Leftovers:
    digest, rest = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError("its digest differs")
    head, _, tensors = rest.partition(b"\n")
    told, found = parse_json(head), load(tensors)
    return Leftovers(
        owner=Owner(**told["owner"]),
        instruction=told["instruction"],
        before=_under(_BEFORE, found),
        after=_under(_AFTER, found),
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }

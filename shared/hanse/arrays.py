"""Tensors as Flower's arrays, serialised only where somebody asks for the bytes.

Within a process a message holds tensors as they are, and what has arrived holds its arrays as
parts of the body that came. Their bytes, which are numpy's, are put in one place only for those
who ask for ``data``; links and digests take them where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from blake3 import blake3
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

from hanse.layout import BFLOAT16, LONGEST_HEADER, Layout, layout_of
from hanse.parts import Data, Part, in_memory

_NUMPY = "numpy.ndarray"

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord, RecordDict)


class _LazyArray(Array):
    """An Array whose ``data`` is made where it is asked for; it equals Flower's own."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        described = self.dtype, self.shape, self.stype
        return described == (other.dtype, other.shape, other.stype) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]  # as Flower's, which compares by value, too

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


class TensorArray(_LazyArray):
    """Flower's Array of a tensor; its ``data`` is made, and kept, when it is first asked for.

    Args:
        tensor: contiguous, on the CPU, of a dtype that numpy has; the array's own from now on.
    """

    tensor: torch.Tensor
    digest: bytes | None

    def __init__(self, tensor: torch.Tensor) -> None:
        shape = tuple(tensor.shape)
        # Flower's Array watches over each attribute that is set; these are its first.
        self.__dict__.update(
            tensor=tensor, dtype=_numpy_name(tensor.dtype), shape=shape, stype=_NUMPY, digest=None
        )

    def __getattr__(self, name: str) -> Any:
        if name != "data":
            raise AttributeError(name)
        self.data = _header(self.dtype, self.shape) + self.tensor.numpy().tobytes()
        return self.data

    def numpy(self) -> NDArray[Any]:
        """The values as an array of their own."""
        values: NDArray[Any] = self.tensor.numpy().copy()
        return values


class BufferArray(_LazyArray):
    """An Array over a buffer as it is: nothing is copied until somebody asks for ``data``.

    Flower's own holds ``bytes`` alone, which cannot lie in the body that has arrived, nor in a
    file, nor be seen by torch without a copy.

    Attributes:
        part: the part of a body that holds the array.
    """

    part: Part

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, part: Part) -> None:
        super().__init__(dtype, shape, stype, b"")
        self.part = part

    @property
    def buffer(self) -> Data:
        """The bytes as memory."""
        return in_memory(self.part)

    @property
    def data(self) -> bytes:
        """The bytes, as Flower has them."""
        return bytes(self.buffer)

    @data.setter
    def data(self, data: bytes) -> None:
        self.part = data


@lru_cache
def _numpy_name(dtype: torch.dtype) -> str:
    """What numpy calls a dtype.

    Raises:
        TypeError: if numpy has none such.
    """
    return str(torch.empty(0, dtype=dtype).numpy().dtype)


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What numpy writes before the bytes of such an array."""
    written = BytesIO()
    descr = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(written, {"descr": descr, "fortran_order": False, "shape": shape})
    return written.getvalue()


def size_of(array: Array) -> int:
    """The bytes of an array as it is sent, without making them."""
    if isinstance(array, TensorArray):
        return len(_header(array.dtype, array.shape)) + array.tensor.nbytes
    return len(array.part if isinstance(array, BufferArray) else array.data)


def parts_of(array: Array) -> tuple[memoryview, ...]:
    """The bytes of an array where they lie, in their order: nothing is copied."""
    if isinstance(array, TensorArray):
        header = memoryview(_header(array.dtype, array.shape))
        return (header, bytes_of(array.tensor)) if array.tensor.numel() else (header,)
    return (memoryview(array.buffer if isinstance(array, BufferArray) else array.data),)


def digest_of(array: Array) -> bytes:
    """BLAKE3 of the bytes of an array; of a tensor it is remembered, as nobody will change it."""
    if isinstance(array, TensorArray) and array.digest is not None:
        return array.digest
    hashed = blake3()
    for part in parts_of(array):
        hashed.update(part)
    if isinstance(array, TensorArray):
        array.digest = hashed.digest()
    return hashed.digest()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU where they lie; of one that has any."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def to_array(tensor: torch.Tensor, *, adopt: bool = False) -> Array:
    """A tensor of any dtype as Flower's Array, a copy: detached, on the CPU, contiguous.

    Args:
        adopt: take the tensor itself, where no copy is needed: nobody will change it.
    """
    tensor = tensor.detach().cpu().contiguous()
    tensor = tensor if adopt else tensor.clone()
    if tensor.dtype == torch.bfloat16:
        data = bytes_of(tensor) if tensor.numel() else b""
        return BufferArray("bfloat16", tuple(tensor.shape), BFLOAT16, data)
    return TensorArray(tensor)


def read_tensor(array: Array) -> torch.Tensor:
    """The tensor that :func:`to_array` was given, to be read only: others may read it too.

    Raises:
        ValueError: if the bytes do not make an array of the declared dtype and shape.
    """
    return array.tensor if isinstance(array, TensorArray) else _parsed(array)


def to_tensor(array: Array) -> torch.Tensor:
    """The tensor that :func:`to_array` was given; it owns its memory.

    Raises:
        ValueError: if the bytes do not make an array of the declared dtype and shape.
    """
    return read_tensor(array).clone()


def _parsed(array: Array) -> torch.Tensor:
    """The tensor over an array's bytes; over a copy if they are read-only, or lie askew."""
    data = array.buffer if isinstance(array, BufferArray) else array.data
    layout = layout_of(array, bytes(memoryview(data)[:LONGEST_HEADER]), len(data))
    flat = _viewed(data, layout)
    if layout.fortran:
        shape = array.shape
        return flat.reshape(shape[::-1]).permute(tuple(range(len(shape))[::-1])).contiguous()
    return flat.reshape(array.shape)


def _viewed(data: Data, layout: Layout) -> torch.Tensor:
    if len(data) == layout.start:
        return torch.empty(0, dtype=layout.dtype)
    raw = np.frombuffer(data, np.uint8, offset=layout.start)
    if not raw.flags.writeable or raw.ctypes.data % layout.dtype.itemsize:
        raw = raw.copy()
    return torch.from_numpy(raw).view(layout.dtype)


def to_record(tensors: Mapping[str, torch.Tensor], *, adopt: bool = False) -> ArrayRecord:
    """Named tensors as Flower's ArrayRecord, in their order.

    Args:
        adopt: take the tensors themselves, where no copy is needed: nobody will change them.
    """
    arrays = {name: to_array(tensor, adopt=adopt) for name, tensor in tensors.items()}
    return filled(ArrayRecord, arrays)


def filled(kind: type[R], values: dict[str, Any]) -> R:
    """A record of Flower's that holds ``values``, of types that it may hold; it keeps the dict.

    Flower's own constructors look at each key and each value again, which takes as long as a step
    of a small model; of arrays, they make the bytes.
    """
    record = kind()
    record.__dict__["_data"] = values
    return record


def to_tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """The tensors of an ArrayRecord, by name, in its order; they own their memory."""
    return {name: to_tensor(array) for name, array in record.items()}


def read_tensors(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """The tensors of an ArrayRecord, by name, in its order, to be read only."""
    return {name: read_tensor(array) for name, array in record.items()}


def as_flowers(content: RecordDict) -> RecordDict:
    """The same with Flower's own arrays, as its own wire takes them: it tells classes by name."""
    return RecordDict(
        {
            name: ArrayRecord(dict(record)) if isinstance(record, ArrayRecord) else record
            for name, record in content.items()
        }
    )


def only_arrays(content: RecordDict) -> ArrayRecord:
    """The one ArrayRecord of a message.

    Raises:
        ValueError: if there is none, or more than one.
    """
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    if len(records) != 1:
        raise ValueError(f"expected one ArrayRecord, found {len(records)}")
    return records[0]

"""Tensors as Flower's arrays, serialised only where somebody asks for the bytes.

Within a process a message holds tensors as they are, and what has arrived holds its arrays as
parts of the body that came. Their bytes, which are numpy's, are put in one place only for those
who ask for ``data``; links and digests take them where they lie.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

# What numpy writes before an array's bytes. Not numpy.load, which would open archives too,
# evaluate the text, and take memory for whatever shape it declares.
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)"
    rb"\{'descr': '(?P<dtype>[<>|=]?[A-Za-z][0-9]{1,4})', "
    rb"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[0-9, ]{0,600})\), \} *\n",
    re.DOTALL,
)

_LONGEST_HEADER = 1024  # bytes; what _NPY matches is shorter

_NEAR_BYTES = 64 << 10

_NUMPY = "numpy.ndarray"
_BFLOAT16 = "hanse.bfloat16"  # numpy has no bfloat16: its raw little-endian bytes

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord, RecordDict)

Data = bytes | bytearray | memoryview
"""The bytes of an array."""

Part = Data | Callable[[], Data]
"""Bytes, or what gives them whenever they are asked for."""


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
    sha256: bytes | None

    def __init__(self, tensor: torch.Tensor) -> None:
        shape = tuple(tensor.shape)
        # Flower's Array watches over each attribute that is set; these are its first.
        self.__dict__.update(
            tensor=tensor, dtype=_numpy_name(tensor.dtype), shape=shape, stype=_NUMPY, sha256=None
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

    Args:
        buffer: the part of a body that holds the array, or what gives that part.
    """

    _buffer: Part

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, buffer: Part) -> None:
        super().__init__(dtype, shape, stype, b"")
        self._buffer = buffer

    @property
    def buffer(self) -> Data:
        """The bytes where they lie."""
        return self._buffer() if callable(self._buffer) else self._buffer

    @property
    def data(self) -> bytes:
        """The bytes, as Flower has them."""
        return bytes(self.buffer)

    @data.setter
    def data(self, data: bytes) -> None:
        self._buffer = data


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
    return len(array.buffer if isinstance(array, BufferArray) else array.data)


def parts_of(array: Array) -> tuple[memoryview, ...]:
    """The bytes of an array where they lie, in their order: nothing is copied."""
    if isinstance(array, TensorArray):
        header = memoryview(_header(array.dtype, array.shape))
        return (header, _bytes_of(array.tensor)) if array.tensor.numel() else (header,)
    return (memoryview(array.buffer if isinstance(array, BufferArray) else array.data),)


def sha256_of(array: Array) -> bytes:
    """SHA-256 of the bytes of an array; of a tensor it is remembered, as nobody will change it."""
    if isinstance(array, TensorArray) and array.sha256 is not None:
        return array.sha256
    sha = hashlib.sha256()
    for part in parts_of(array):
        for piece in _near(part):
            sha.update(piece)
    if isinstance(array, TensorArray):
        array.sha256 = sha.digest()
    return sha.digest()


def _near(data: memoryview) -> Iterator[memoryview]:
    """The same bytes in pieces, each copied into the cache first where they are many.

    From memory, SHA-256 reads one line after the other and waits for each; a copy does not. With it
    a gigabyte took 0.63 s in place of 0.86 on the machine of the figures in tests/benchmarks.
    """
    if len(data) <= _NEAR_BYTES:
        yield data
        return
    near = memoryview(bytearray(_NEAR_BYTES))
    for start in range(0, len(data), _NEAR_BYTES):
        piece = data[start : start + _NEAR_BYTES]
        copied = near[: len(piece)]
        copied[:] = piece
        yield copied


def _bytes_of(tensor: torch.Tensor) -> memoryview:
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
        data = _bytes_of(tensor) if tensor.numel() else b""
        return BufferArray("bfloat16", tuple(tensor.shape), _BFLOAT16, data)
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
    if array.stype == _BFLOAT16:
        _check_size(array, len(data), torch.bfloat16.itemsize)
        return _viewed(data, 0, np.dtype(np.uint16)).view(torch.bfloat16).reshape(array.shape)
    written = _NPY.match(bytes(memoryview(data)[:_LONGEST_HEADER]))
    if written is None:
        raise ValueError(f"declared {array.dtype}{tuple(array.shape)}, holds no array of numpy's")
    text = {name: part.decode() for name, part in written.groupdict().items()}
    shape = tuple(int(size) for size in text["shape"].split(",") if size.strip())
    try:
        dtype = np.dtype(text["dtype"])
        if shape != tuple(array.shape) or str(dtype) != array.dtype:
            raise ValueError(
                f"declared {array.dtype}{tuple(array.shape)}, holds {text['dtype']}{shape}"
            )
        _check_size(array, len(data) - written.end(), dtype.itemsize)
        flat = _viewed(data, written.end(), dtype)
    except TypeError as foreign:
        raise ValueError(f"torch has no tensors of {text['dtype']}") from foreign
    if text["fortran"] == "True":
        return flat.reshape(shape[::-1]).permute(tuple(range(len(shape))[::-1])).contiguous()
    return flat.reshape(shape)


def _viewed(data: Data, start: int, dtype: np.dtype[Any]) -> torch.Tensor:
    if len(data) == start:
        return torch.from_numpy(np.empty(0, dtype))
    flat = np.frombuffer(data, dtype, offset=start)
    if not (flat.flags.writeable and flat.flags.aligned):
        flat = flat.copy()
    return torch.from_numpy(flat)


def _check_size(array: Array, size: int, itemsize: int) -> None:
    """Hold a declared shape against the bytes that are there, before memory is taken for it."""
    too_long = any(length >= 2**62 for length in array.shape)  # beside a 0, for no bytes at all
    if too_long or size != math.prod(array.shape) * itemsize:
        raise ValueError(f"declared {array.dtype}{tuple(array.shape)}, holds {size} bytes")


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

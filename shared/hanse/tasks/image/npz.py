"""NPZ archives with the arrays ``images`` (uint8) and ``labels`` (integers); never unpickled."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from hanse.errors import DataError
from hanse.tasks.image.expected import (
    Expected,
    Labels,
    Pixels,
    check_declared,
    same_length,
)

_BROKEN = (
    *(OSError, EOFError, ValueError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),  # of numpy's headers
)
"""What zipfile and numpy raise on archives that are damaged."""


def read(path: Path, expected: Expected) -> tuple[Pixels, Labels]:
    """Read an NPZ archive.

    Returns:
        Images of shape (N, C, H, W) and class numbers of shape (N,).

    Raises:
        DataError: if it is malformed, or not what is expected.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            images = _read_array(archive, "images", path, expected)
            labels = _read_array(archive, "labels", path, None)
    except _BROKEN as broken:
        raise DataError(f"{path.name}: cannot be read ({type(broken).__name__})") from broken
    same_length(len(images), len(labels), path.name)
    return expected.arrange(images, path.name), expected.number(labels, path.name)


def _read_array(
    archive: zipfile.ZipFile, name: str, path: Path, images: Expected | None
) -> npt.NDArray[Any]:
    if f"{name}.npy" not in archive.namelist():
        raise DataError(f"{path.name}: lacks the array {name}")
    packing = archive.getinfo(f"{name}.npy").compress_type
    if packing not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path.name}: {name} are packed in another way than numpy does")
    with archive.open(f"{name}.npy") as member:
        shape, dtype = _read_header(member)
    if images is None:
        fits = dtype.kind in "iu" and len(shape) == 1
        wanted = "integers in one dimension"
    else:
        images.layout(shape, path.name)
        fits = dtype == np.uint8
        wanted = "uint8"
    if not fits:
        raise DataError(
            f"{path.name}: {name} are {dtype} in {len(shape)} dimensions, not {wanted}",
            remedy="Save images as uint8 from 0 to 255, and labels as class numbers.",
        )
    check_declared(math.prod(shape) * dtype.itemsize, path, compressed=True)
    with archive.open(f"{name}.npy") as member:
        array: npt.NDArray[Any] = npy.read_array(member, allow_pickle=False)
    return array


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype

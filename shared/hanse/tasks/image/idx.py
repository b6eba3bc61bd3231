"""IDX files, the format of MNIST: a header of big-endian sizes, then bytes; gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hanse.errors import DataError
from hanse.tasks.image.expected import (
    Expected,
    Labels,
    Pixels,
    check_declared,
    same_length,
)

_UNSIGNED_BYTES = 0x08


def is_images(path: Path) -> bool:
    """Whether a file's name says that it holds the images of a pair of IDX files."""
    return path.is_file() and "images" in path.name and "ubyte" in path.name


def find_images(folder: Path) -> list[Path]:
    """The image files of the pairs in a folder."""
    return sorted(path for path in folder.iterdir() if is_images(path))


def read(images: Path, expected: Expected) -> tuple[Pixels, Labels]:
    """Read a pair of IDX files; the labels' name is that of ``images`` with ``labels`` in it.

    Returns:
        Images of shape (N, C, H, W) and class numbers of shape (N,).

    Raises:
        DataError: if a file is missing, malformed, cut off, or not what is expected.
    """
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if not labels.is_file():
        raise DataError(
            f"{images.name}: its labels, {labels.name}, are not beside it",
            remedy=f"Put {labels.name} into the same folder.",
        )
    numbers = _read_array(labels, None)
    pixels = _read_array(images, expected)
    same_length(len(pixels), len(numbers), images.name)
    return expected.arrange(pixels, images.name), expected.number(numbers, labels.name)


def _read_array(path: Path, images: Expected | None) -> Pixels:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            sizes = _read_sizes(file, path)
            _check_sizes(sizes, path, images)
            data = file.read(math.prod(sizes) + 1)
    except (OSError, EOFError, zlib.error) as broken:
        raise DataError(f"{path.name}: cannot be read ({type(broken).__name__})") from broken
    if len(data) != math.prod(sizes):
        raise DataError(
            f"{path.name}: holds {'fewer' if len(data) < math.prod(sizes) else 'more'} bytes"
            f" than the {math.prod(sizes)} that its header declares"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(sizes)


def _read_sizes(file: gzip.GzipFile | BinaryIO, path: Path) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTES:
        raise DataError(f"{path.name}: is no IDX file of unsigned bytes")
    header = file.read(4 * magic[3])
    if len(header) != 4 * magic[3]:
        raise DataError(f"{path.name}: ends within its header")
    return tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))


def _check_sizes(sizes: tuple[int, ...], path: Path, images: Expected | None) -> None:
    if images is not None:
        images.layout(sizes, path.name)
    elif len(sizes) != 1:
        raise DataError(f"{path.name}: labels have one dimension, not {len(sizes)}")
    check_declared(math.prod(sizes), path, compressed=path.suffix == ".gz")

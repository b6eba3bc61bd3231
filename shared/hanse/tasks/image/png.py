"""Folders of PNG images: ``<class>/<name>.png``, one folder for each declared class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hanse.errors import DataError, MissingExtraError
from hanse.tasks.image.expected import Expected, Labels, Pixels, same_length

if TYPE_CHECKING:
    from types import ModuleType

_MODES = {1: "L", 3: "RGB"}


def read(folder: Path, expected: Expected) -> tuple[Pixels, Labels]:
    """Read a folder of PNG images, in the order of classes and of file names.

    A site need not have images of every class. Grey images are read as grey or as three equal
    channels, colour images as colour or as their luminance, as the declared shape asks.

    Returns:
        Images of shape (N, C, H, W) and class numbers of shape (N,).

    Raises:
        DataError: if a folder is of no declared class, or an image cannot be read or has
            another size.
        MissingExtraError: if Pillow is not installed.
    """
    _check_folders(folder, expected)
    files = [
        (path, number)
        for number, name in enumerate(expected.classes)
        for path in sorted((folder / name).glob("*.png"))
    ]
    same_length(len(files), len(files), folder.name)
    first = _read_image(files[0][0], expected)  # before memory is taken for as many of its size
    pixels = np.empty((len(files), *first.shape), dtype=np.uint8)
    pixels[0] = first
    for row, (path, _) in enumerate(files[1:], start=1):
        pixels[row] = _read_image(path, expected)
    return pixels, np.array([number for _, number in files], dtype=np.int64)


def _check_folders(folder: Path, expected: Expected) -> None:
    present = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    unknown = present - set(expected.classes)
    if unknown or not present:
        told = f"folders of no declared class: {', '.join(sorted(unknown))}"
        raise DataError(
            f"{folder.name}: holds {told if unknown else 'no folder of a class'}",
            remedy="Name the folders like task.options.classes: <class>/<name>.png.",
        )


def _read_image(path: Path, expected: Expected) -> Pixels:
    channels, height, width = expected.shape
    pillow = _pillow()
    bomb = pillow.DecompressionBombError
    try:
        with pillow.open(path, formats=("PNG",)) as image:  # reads the header alone
            if image.size != (width, height):
                raise DataError(
                    f"{path.parent.name}/{path.name}: is {image.height} x {image.width}, not"
                    f" {height} x {width}",
                    remedy="Resize the images, or correct task.options.shape.",
                )
            pixels = np.asarray(image.convert(_MODES[channels]), dtype=np.uint8)
    except (
        OSError,
        SyntaxError,
        ValueError,
        MemoryError,
        bomb,
    ) as broken:  # Pillow raises them all
        raise DataError(f"{path.parent.name}/{path.name}: cannot be read as PNG") from broken
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as missing:
        raise MissingExtraError(
            "reading PNG images needs the package Pillow",
            remedy='Install it with `pip install "hanse[client]"`.',
        ) from missing
    return Image

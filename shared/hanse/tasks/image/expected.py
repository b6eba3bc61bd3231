"""What a job declares of its images, and the checks that every format shares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hanse.errors import DataError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_DEFLATE_AT_MOST = 1032  # no deflate stream grows by more when it is inflated


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a job declares of its images.

    Attributes:
        shape: channels, height, width.
        classes: names of the classes, in the order of the model's outputs.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]

    def layout(self, dimensions: tuple[int, ...], file: str) -> tuple[int, ...]:
        """The order of axes that turns an array of ``dimensions`` into (N, C, H, W).

        Grey images may leave their channel out, which is then to be added at axis 1; others may
        hold it last.

        Raises:
            DataError: if the dimensions fit no layout.
        """
        channels, height, width = self.shape
        if dimensions[1:] == self.shape:
            return (0, 1, 2, 3)
        if dimensions[1:] == (height, width, channels):
            return (0, 3, 1, 2)
        if channels == 1 and dimensions[1:] == (height, width):
            return (0, 1, 2)
        found = " x ".join(str(size) for size in dimensions[1:])
        raise DataError(
            f"{file}: holds images of {found or 'no size'}, not {channels} x {height} x {width}",
            remedy="Correct shape = [channels, height, width] in task.options, or the images.",
        )

    def arrange(self, images: Pixels, file: str) -> Pixels:
        """``images`` as (N, C, H, W).

        Raises:
            DataError: if they have another size.
        """
        arranged = images.transpose(self.layout(images.shape, file))
        return arranged.reshape(len(images), *self.shape).copy()

    def number(self, labels: npt.NDArray[np.integer], file: str) -> Labels:
        """``labels`` as class numbers, shape (N,).

        Raises:
            DataError: if one is no number of a class.
        """
        wrong = (labels < 0) | (labels >= len(self.classes))
        if wrong.any():
            raise DataError(
                f"{file}: {int(wrong.sum())} of {len(labels)} labels are not between 0 and"
                f" {len(self.classes) - 1} (first: record {int(wrong.argmax()) + 1})",
                remedy="Declare all classes in task.options.classes, or mend the labels.",
            )
        return labels.astype(np.int64)


def same_length(images: int, labels: int, file: str) -> None:
    """Raise a DataError unless there is one label an image, and at least one image."""
    if images != labels:
        raise DataError(f"{file}: {images} images, but {labels} labels")
    if images == 0:
        raise DataError(f"{file}: holds no images")


def check_declared(size: int, path: Path, *, compressed: bool) -> None:
    """Raise a DataError if a file cannot hold the ``size`` bytes that its header declares."""
    held = path.stat().st_size
    if size > held * (_DEFLATE_AT_MOST if compressed else 1):
        raise DataError(
            f"{path.name}: declares {size} bytes, more than a file of {held} bytes can hold"
        )

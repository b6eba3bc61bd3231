"""The task ``image``: classification of images of one size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from hanse.config import Settings
from hanse.errors import DataError
from hanse.task import Examples, RecordMetric, Task
from hanse.tasks.image import idx, npz, png
from hanse.tasks.image.augmentation import Augmentation, augment
from hanse.tasks.image.expected import Expected, Labels, Pixels
from hanse.tasks.image.gradients import Grid
from hanse.tasks.image.models import Normalize, Shape, cnn, gradients, mlp, resnet
from hanse.tasks.perceptron import Activation
from hanse.tasks.scores import classification, correct

Size = Annotated[int, Field(ge=1, le=65_536)]
"""Of a layer, an image, a set of classes: a site takes these numbers from its server."""

Sizes = Annotated[tuple[Size, ...], Field(max_length=64)]


Blocks = Annotated[int, Field(ge=1, le=64)]


class MlpChoice(Settings):
    """A perceptron over all pixels."""

    kind: Literal["mlp"]
    hidden: Sizes = (128,)
    activation: Activation = "relu"

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The model of images of ``shape``."""
        return mlp(shape, self.hidden, classes, self.activation)


class CnnChoice(Settings):
    """A 3x3 convolution and a pooling by two for each of ``channels``, then a perceptron."""

    kind: Literal["cnn"]
    channels: Annotated[tuple[Size, ...], Field(min_length=1, max_length=16)] = (32, 64)
    hidden: Sizes = (128,)
    activation: Activation = "relu"

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The model of images of ``shape``."""
        return cnn(shape, self.channels, self.hidden, classes, self.activation)


class GradientsChoice(Settings):
    """Histograms of oriented gradients, then a linear model or a perceptron; for small data."""

    kind: Literal["gradients"]
    grid: Grid = Grid()
    hidden: Sizes = ()
    activation: Activation = "tanh"

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The model of images of ``shape``."""
        return gradients(shape, self.grid, self.hidden, classes, self.activation)


class ResnetChoice(Settings):
    """ResNet with GroupNorm; the default is ResNet-18. ``width`` is even."""

    kind: Literal["resnet"]
    width: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] = 64
    blocks: Annotated[tuple[Blocks, ...], Field(min_length=1, max_length=8)] = (2, 2, 2, 2)

    def build(self, shape: Shape, classes: int) -> nn.Sequential:
        """The model of images of ``shape``."""
        return resnet(shape, self.width, self.blocks, classes)


ModelChoice = Annotated[
    MlpChoice | CnnChoice | GradientsChoice | ResnetChoice, Field(discriminator="kind")
]


class ImageOptions(Settings):
    """``[task.options]``: the images' size and classes, the constants, and the model.

    Attributes:
        shape: channels (1 or 3), height, width.
        classes: their number, or their names; PNG folders are named like them (``0``, ``1``, ...).
        mean: of each channel, of pixels from 0 to 1: a declared constant.
        std: likewise.
        augment: how images move in training, where ``training.augment`` is on.
    """

    shape: tuple[Literal[1, 3], Size, Size]
    classes: (
        Annotated[int, Field(ge=2, le=65_536)]
        | Annotated[tuple[str, ...], Field(min_length=2, max_length=65_536)]
    )
    mean: tuple[float, ...] = (0.5,)
    std: tuple[PositiveFloat, ...] = (0.5,)
    model: ModelChoice = CnnChoice(kind="cnn")
    augment: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _fits_together(self) -> ImageOptions:
        for name, constants in (("mean", self.mean), ("std", self.std)):
            if len(constants) not in (1, self.shape[0]):
                raise ValueError(f"{name} has {len(constants)} values for {self.shape[0]} channels")
        names = self.class_names
        if len(set(names)) != len(names):
            raise ValueError("classes: a class is declared twice")
        smallest = min(self.shape[1:])
        if isinstance(self.model, CnnChoice) and smallest >> len(self.model.channels) == 0:
            raise ValueError(f"model.channels: {smallest} pixels cannot be halved so often")
        if isinstance(self.model, GradientsChoice) and smallest < self.model.grid.cell:
            raise ValueError(f"model.grid.cell: larger than the image of {smallest} pixels")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the model's outputs."""
        if isinstance(self.classes, int):
            return tuple(str(number) for number in range(self.classes))
        return self.classes


class Image(Task[ImageOptions]):
    """Classification of images, kept as bytes; the model's first layer normalises them."""

    Options: ClassVar[type[Settings]] = ImageOptions

    def model(self) -> nn.Module:
        """The declared model on (B, C, H, W) bytes."""
        options = self.options
        layers = options.model.build(options.shape, len(options.class_names))
        return nn.Sequential(Normalize(options.mean, options.std), *layers)

    def read(self, source: Path) -> Examples:
        """Read an NPZ archive, an IDX images file, or a folder of either IDX files or PNGs.

        Raises:
            DataError: naming file and record, without values.
        """
        expected = Expected(shape=self.options.shape, classes=self.options.class_names)
        pixels, labels = _read(source, expected)
        return Examples((torch.from_numpy(pixels),), torch.from_numpy(labels))

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """``accuracy``, and ``auc`` for two classes."""
        return classification(outputs, targets)

    def record_metrics(self) -> Mapping[str, RecordMetric]:
        """``accuracy``."""
        return {"accuracy": RecordMetric(values=correct)}

    def augment(self, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Move each image on its own, as ``augment`` in the options says."""
        return (augment(inputs[0], self.options.augment, generator),)


def _read(source: Path, expected: Expected) -> tuple[Pixels, Labels]:
    if source.is_dir():
        pairs = idx.find_images(source)
        if len(pairs) > 1:
            raise DataError(
                f"{source.name}: holds several pairs of IDX files:"
                f" {', '.join(path.name for path in pairs)}",
                remedy="Name one of these files in place of the folder.",
            )
        return idx.read(pairs[0], expected) if pairs else png.read(source, expected)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder", remedy="Name existing images.")
    if source.suffix == ".npz":
        return npz.read(source, expected)
    if idx.is_images(source):
        return idx.read(source, expected)
    raise DataError(
        f"{source.name}: neither an NPZ archive nor an IDX file of images",
        remedy="Name it *.npz or *images*ubyte[.gz], or give a folder of PNGs: <class>/<name>.png.",
    )

"""Classification of images from IDX files, PNG folders and NPZ archives."""

from hanse.tasks.image.task import Image, ImageOptions

__all__ = ["Image", "ImageOptions"]

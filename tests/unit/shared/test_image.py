"""The task `image`: formats, hostile files, models and augmentation."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hanse.errors import DataError, TaskError
from hanse.task import AnyTask, load_task
from PIL import Image

from tests.fuzz.watch import bounded_memory

GREY = {"shape": [1, 4, 6], "classes": 3}
COLOUR = {"shape": [3, 4, 6], "classes": ["cat", "dog"]}

Bytes = npt.NDArray[np.uint8]


def pixels(count: int, *shape: int) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx(array: Bytes, sizes: tuple[int, ...] | None = None) -> bytes:
    sizes = array.shape if sizes is None else sizes
    header = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
    return header + array.tobytes()


def write_idx(folder: Path, images: bytes, labels: bytes, name: str = "train") -> Path:
    path = folder / f"{name}-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(images))
    (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return path


def grey() -> AnyTask:
    return load_task("image", GREY)


LABELS = np.array([2, 0, 1, 1, 0], dtype=np.uint8)


def test_idx_pairs_by_file_and_by_folder(tmp_path: Path) -> None:
    images = pixels(5, 4, 6)
    path = write_idx(tmp_path, idx(images), idx(LABELS))
    for source in (path, tmp_path):
        examples = grey().read(source)
        assert torch.equal(examples.inputs[0], torch.from_numpy(images[:, None]))
        assert examples.inputs[0].dtype == torch.uint8
        assert examples.targets.tolist() == LABELS.tolist()


def test_idx_without_gzip(tmp_path: Path) -> None:
    (tmp_path / "train-images.idx3-ubyte").write_bytes(idx(pixels(5, 4, 6)))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx(LABELS))
    assert len(grey().read(tmp_path / "train-images.idx3-ubyte")) == 5


def test_a_folder_of_several_pairs_asks_which(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_idx(tmp_path, idx(pixels(5, 4, 6)), idx(LABELS), name)
    with pytest.raises(DataError, match=r"several pairs.*test-images.*train-images"):
        grey().read(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(pixels(5, 6, 4)), idx(LABELS), "images of 6 x 4, not 1 x 4 x 6"),
        (idx(pixels(4, 4, 6)), idx(LABELS), "4 images, but 5 labels"),
        (idx(pixels(5, 4, 6)), idx(LABELS + 1), "1 of 5 labels are not between 0 and 2"),
        (idx(pixels(5, 4, 6))[:-1], idx(LABELS), "fewer bytes"),
        (idx(pixels(5, 4, 6)) + b"x", idx(LABELS), "more bytes"),
        (idx(pixels(0, 4, 6)), idx(LABELS[:0]), "holds no images"),
        (b"\0\0\x0d\3" + idx(pixels(5, 4, 6))[4:], idx(LABELS), "no IDX file of unsigned bytes"),
        (b"\0\0\x08\3\0", idx(LABELS), "ends within its header"),
        (idx(pixels(5, 4, 6)), idx(pixels(5, 4)), "labels have one dimension, not 2"),
    ],
)
def test_idx_files_that_do_not_fit(
    tmp_path: Path, images: bytes, labels: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        grey().read(write_idx(tmp_path, images, labels))


def test_idx_declared_sizes_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = write_idx(tmp_path, idx(pixels(1, 4, 6), (2**32 - 1, 4, 6)), idx(LABELS))
    with pytest.raises(DataError, match="declares 103079215080 bytes, more than a file of"):
        grey().read(path)


def test_idx_broken_gzip_and_missing_labels(tmp_path: Path) -> None:
    path = write_idx(tmp_path, idx(pixels(5, 4, 6)), idx(LABELS))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        grey().read(path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"its labels, train-labels-idx1-ubyte\.gz, are not"):
        grey().read(path)


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (4, 6, 1)])
def test_npz_of_grey_images_in_any_layout(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = pixels(5, *shape)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=LABELS)
    examples = grey().read(tmp_path / "a.npz")
    assert torch.equal(examples.inputs[0], torch.from_numpy(images.reshape(5, 1, 4, 6)))


def test_npz_with_channels_last(tmp_path: Path) -> None:
    images = pixels(2, 4, 6, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1]))
    examples = load_task("image", COLOUR).read(tmp_path / "a.npz")
    assert torch.equal(examples.inputs[0], torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(5, 4, 6)}, "lacks the array labels"),
        ({"images": pixels(5, 4, 6) / 255, "labels": LABELS}, "images are float64"),
        ({"images": pixels(5, 4, 6), "labels": LABELS / 1}, "labels are float64"),
        ({"images": pixels(5, 4, 6), "labels": LABELS.astype(int) - 1}, "2 of 5 labels"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        grey().read(tmp_path / "a.npz")


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    trap = np.empty(5, dtype=object)
    trap[:] = [Trap()] * 5
    np.savez(tmp_path / "a.npz", allow_pickle=True, images=pixels(5, 4, 6), labels=trap)
    with pytest.raises(DataError, match="labels are object"):
        grey().read(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_npz_declared_sizes_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 4, 6)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    with pytest.raises(DataError, match="declares 26388279066624 bytes"):
        grey().read(tmp_path / "a.npz")


def test_npz_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="cannot be read"):
        grey().read(tmp_path / "a.npz")


def write_png(folder: Path, label: str, name: str, array: Bytes) -> None:
    (folder / label).mkdir(exist_ok=True)
    Image.fromarray(array).save(folder / label / f"{name}.png")


def test_png_folders_in_the_order_of_classes_and_names(tmp_path: Path) -> None:
    images = pixels(9, 4, 6, 3)
    for place in (5, 2, 8, 1, 7, 3, 6, 4):
        write_png(tmp_path, "dog", f"{place}", images[place])
    write_png(tmp_path, "cat", "z", images[0])
    examples = load_task("image", COLOUR).read(tmp_path)
    assert examples.targets.tolist() == [0] + [1] * 8
    assert torch.equal(examples.inputs[0], torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def test_png_grey_where_a_class_is_absent(tmp_path: Path) -> None:
    image = pixels(1, 4, 6)[0]
    write_png(tmp_path, "2", "a", image)
    examples = grey().read(tmp_path)
    assert examples.targets.tolist() == [2]
    assert torch.equal(examples.inputs[0][0, 0], torch.from_numpy(image))


def test_png_folders_that_do_not_fit(tmp_path: Path) -> None:
    task = load_task("image", COLOUR)
    with pytest.raises(DataError, match="no folder of a class"):
        task.read(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        task.read(tmp_path)
    write_png(tmp_path, "cat", "a", pixels(1, 5, 6, 3)[0])
    with pytest.raises(DataError, match=r"cat/a\.png: is 5 x 6, not 4 x 6"):
        task.read(tmp_path)
    (tmp_path / "cat" / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"cat/a\.png: cannot be read as PNG"):
        task.read(tmp_path)
    write_png(tmp_path, "bird", "a", pixels(1, 4, 6, 3)[0])
    with pytest.raises(DataError, match="no declared class: bird"):
        task.read(tmp_path)


def test_files_of_no_known_format(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="neither an NPZ archive nor"):
        grey().read(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="no such file or folder"):
        grey().read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2, 4, 6]}, "shape"),
        ({"classes": 1}, "classes"),
        ({"classes": ["a", "a"]}, "twice"),
        ({"mean": [0.1, 0.2]}, "mean has 2 values for 1 channels"),
        ({"std": [0.0]}, "std"),
        ({"model": {"kind": "vit"}}, "cnn"),
        ({"model": {"kind": "cnn", "channels": [8, 8, 8]}}, "cannot be halved so often"),
        ({"model": {"kind": "gradients", "grid": {"cell": 5}}}, "larger than the image of 4"),
        ({"model": {"kind": "resnet", "width": 3}}, "width"),
        ({"augment": {"rotate": -1.0}}, "rotate"),
    ],
)
def test_mistakes_in_the_options_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task("image", GREY | change)


# --- what a header declares, and is not there -----------------------------------------------------


def npz_of(folder: Path, header: bytes, packing: int = zipfile.ZIP_STORED) -> Path:
    """An archive whose images begin with ``header``."""
    path = folder / "data.npz"
    labels = io.BytesIO()
    np.save(labels, np.array([0]))
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("images.npy", header)
        archive.writestr("labels.npy", labels.getvalue())
    return path


@pytest.mark.parametrize("text", [b"{'descr': (", b"{'a': " + b"(" * 5000, b"\0", b"{'descr': '\n"])
def test_a_header_that_is_no_python_is_refused(tmp_path: Path, text: bytes) -> None:
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with pytest.raises(DataError, match="cannot be read"):
        grey().read(npz_of(tmp_path, header))


def test_an_archive_that_is_packed_in_another_way_is_refused(tmp_path: Path) -> None:
    """LZMA takes the memory that its header declares."""
    with pytest.raises(DataError, match="packed in another way"):
        grey().read(npz_of(tmp_path, b"", zipfile.ZIP_LZMA))


def test_an_archive_for_a_later_version_is_refused(tmp_path: Path) -> None:
    path = npz_of(tmp_path, b"")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 105
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        grey().read(path)


def png_of(folder: Path, width: int, height: int) -> None:
    """A PNG that declares a size, and holds one pixel."""
    written = io.BytesIO()
    Image.new("L", (1, 1)).save(written, "PNG")
    data = bytearray(written.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (folder / "0").mkdir()
    (folder / "0" / "a.png").write_bytes(data)


def test_a_png_that_declares_any_number_of_pixels_is_refused(tmp_path: Path) -> None:
    png_of(tmp_path, 2**31 - 1, 2**31 - 1)
    with pytest.raises(DataError):
        grey().read(tmp_path)


def test_no_memory_is_taken_for_images_that_are_not_there(tmp_path: Path) -> None:
    """Their declared size would need 12 GB."""
    png_of(tmp_path, 1, 1)
    task = load_task("image", {**GREY, "shape": [3, 65_536, 65_536], "model": {"kind": "mlp"}})
    with bounded_memory(), pytest.raises(DataError, match="is 1 x 1"):
        task.read(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 10**9},
        {"model": {"kind": "mlp", "hidden": [1] * 65}},
        {"model": {"kind": "mlp", "hidden": [2**63 - 1]}},
        {"model": {"kind": "cnn", "channels": [2**32]}},
        {"model": {"kind": "resnet", "blocks": [10**9]}},
        {"model": {"kind": "resnet", "blocks": [1] * 9}},
        {"model": {"kind": "resnet", "width": 2**20}},
        {"shape": [1, 2**40, 2**40], "model": {"kind": "mlp"}},
        {"model": {"kind": "gradients", "grid": {"orientations": 10**9, "cell": 2}}},
    ],
)
def test_options_that_would_take_any_memory_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError):
        load_task("image", {**GREY, **options})

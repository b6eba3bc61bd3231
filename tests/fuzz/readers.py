"""A site's data files, as the shipped tasks read them."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from hanse.errors import DataError, HanseError
from hanse.task import AnyTask, load_task
from PIL import Image

from tests.fuzz.mutation import change_bytes, pack, unpack
from tests.fuzz.target import Target

_SHAPE = (1, 4, 3)
_IMAGES = {"shape": list(_SHAPE), "classes": 3, "model": {"kind": "mlp"}}
_TABLE: dict[str, Any] = {
    "columns": {
        "age": {"type": "number", "low": 0, "high": 100, "missing": "flag"},
        "dose": {"type": "number", "low": 0, "high": 9, "scale": "log", "missing_values": [-1]},
        "sex": {"type": "category", "values": ["f", "m"], "unknown": "flag"},
        "stage": {"type": "category", "values": [1, 2, 3], "missing": "flag"},
        "smoker": {"type": "boolean", "missing": "flag"},
    },
    "target": {"column": "outcome", "classes": ["ill", "well"]},
}


def _read(task: AnyTask, path: Path) -> None:
    """Read data; what is wrong with it is a DataError and no other."""
    try:
        task.read(path)
    except DataError:
        raise
    except HanseError as other:
        raise AssertionError(f"{type(other).__name__} in place of a DataError") from other


def idx_files(folder: Path) -> Target:
    """A pair of IDX files, plain or gzipped."""
    task = load_task("image", _IMAGES)
    images = struct.pack(">HBBIII", 0, 8, 3, 2, *_SHAPE[1:]) + bytes(range(24))
    labels = struct.pack(">HBBI", 0, 8, 1, 2) + b"\1\2"

    def run(data: bytes) -> None:
        flag, *parts = [*unpack(data, 3), b"", b"", b""]
        ending = ".gz" if flag else ""
        for name, part in zip(("images-idx3", "labels-idx1"), parts, strict=False):
            (folder / f"{name}-ubyte{ending}").write_bytes(part)
        _read(task, folder / f"images-idx3-ubyte{ending}")

    def mutate(data: bytes, randomness: Random) -> bytes:
        parts = [*unpack(data, 3), b"", b"", b""][:3]
        which = randomness.choice((1, 2))
        if parts[0] and randomness.random() < 0.5:
            try:
                inner = gzip.decompress(parts[which])
            except (OSError, EOFError, zlib.error):
                inner = parts[which][:100]
            parts[which] = gzip.compress(change_bytes(inner, randomness), mtime=0)
        else:
            parts[which] = change_bytes(parts[which], randomness)
        return pack(parts)

    zipped = [gzip.compress(each, mtime=0) for each in (images, labels)]
    seeds = [pack([b"", images, labels]), pack([b"z", *zipped])]
    return Target(run=run, seeds=seeds, mutate=mutate)


def npz_files(folder: Path) -> Target:
    """An NPZ archive."""
    task, path = load_task("image", _IMAGES), folder / "data.npz"
    pixels = np.zeros((2, *_SHAPE), np.uint8)
    labels = np.array([0, 2])
    seeds = []
    for save in (np.savez, np.savez_compressed):
        written = io.BytesIO()
        save(written, images=pixels, labels=labels)
        seeds.append(written.getvalue())

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _read(task, path)

    def mutate(data: bytes, randomness: Random) -> bytes:
        """Change the members of an archive that is written anew, checksums and all."""
        arrays = []
        for array in (pixels, labels):
            member = io.BytesIO()
            np.save(member, array)
            arrays.append(member.getvalue())
        which = randomness.randrange(2)
        header = arrays[which][:128] if randomness.random() < 0.9 else arrays[which]
        rest = arrays[which][len(header) :]
        arrays[which] = change_bytes(header, randomness) + rest
        return _archive(dict(zip(("images.npy", "labels.npy"), arrays, strict=True)))

    return Target(run=run, seeds=seeds, mutate=mutate)


def _archive(members: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()


def png_files(folder: Path) -> Target:
    """A PNG in a folder of classes."""
    task, path = load_task("image", _IMAGES), folder / "data" / "1" / "a.png"
    path.parent.mkdir(parents=True)
    seeds = []
    for mode in ("L", "RGB", "P", "1", "RGBA", "I;16"):
        written = io.BytesIO()
        Image.new(mode, _SHAPE[:0:-1]).save(written, "PNG")
        seeds.append(written.getvalue())

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _read(task, folder / "data")

    return Target(run=run, seeds=seeds, mutate=_change_png)


def _change_png(data: bytes, randomness: Random) -> bytes:
    """A change to one chunk of a PNG, its checksum made to fit."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8 + size])
        at += 12 + size
    if not chunks:
        return change_bytes(data, randomness)
    which = randomness.randrange(len(chunks))
    if randomness.random() < 0.2:
        chunks.insert(which, randomness.choice(chunks))
    elif chunks[which][:4] == b"IDAT" and randomness.random() < 0.5:
        pixels = zlib.compress(change_bytes(bytes(16), randomness) * randomness.choice((1, 1000)))
        chunks[which] = b"IDAT" + pixels
    elif randomness.random() < 0.1:
        text = b"a\0\0" + zlib.compress(bytes(1 << 22))
        chunks.insert(1, randomness.choice((b"zTXt", b"iCCP")) + text)
    else:
        chunks[which] = change_bytes(chunks[which], randomness)
    return data[:8] + b"".join(
        len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        for chunk in chunks
    )


def csv_files(folder: Path) -> Target:
    """A table in CSV, plain or gzipped; a regression and a classification read it."""
    task = load_task("tabular", _TABLE)
    target = {"column": "dose", "low": 0, "high": 9}
    columns = {name: each for name, each in _TABLE["columns"].items() if name != "dose"}
    regression = load_task("tabular", {"columns": columns, "target": target})
    plain, zipped = folder / "t.csv", folder / "t.csv.gz"
    rows = b"age,dose,sex,stage,smoker,outcome\n41,1.5,f,1,yes,ill\n,3,x,,,well\n7,9,m,3,0,ill\n"

    def run(data: bytes) -> None:
        path = zipped if data[:2] == b"\x1f\x8b" else plain
        path.write_bytes(data)
        try:
            _read(task, path)
        finally:
            _read(regression, path)

    def mutate(data: bytes, randomness: Random) -> bytes:
        lines = [line.split(b",") for line in data.split(b"\n")]
        line = randomness.choice(lines)
        cell = randomness.randrange(len(line))
        line[cell] = randomness.choice(_CELLS) if randomness.random() < 0.7 else line[cell] * 2
        return b"\n".join(b",".join(each) for each in lines)

    return Target(run=run, seeds=[rows, gzip.compress(rows, mtime=0)], mutate=mutate)


_CELLS = (
    *(b"", b"nan", b"NaN", b"inf", b"-inf", b"1e400", b"1e-400", b"0x10", b"1_000", b"9" * 400),
    *(b"True", b"\xff", "é".encode(), "\u0661".encode(), b'"', b'""', b'"a\nb"', b"\0", b"\r"),
    *(b"2020-01-01", b"a,b", b" 1 ", b"1.", b"-", b"+1", b"1+2j", b"1/2", b"\xef\xbb\xbf", b"None"),
)


def parquet_files(folder: Path) -> Target:
    """A table in Parquet."""
    task, path = load_task("tabular", _TABLE), folder / "t.parquet"
    frame = pd.DataFrame(
        {
            "age": [41.0, None],
            "dose": [1, 9],
            "sex": ["f", "m"],
            "stage": [1, 3],
            "smoker": [True, False],
            "outcome": ["ill", "well"],
        }
    )
    odd = frame.assign(
        age=pd.to_datetime(["2020-01-01", "2020-01-02"]),
        stage=pd.Series([[1], [2]], dtype=object),
        dose=pd.Series([b"a", b"1"], dtype=object),
    )
    seeds = []
    for table in (frame, odd, frame.astype({"sex": "category"})):
        table.to_parquet(path)
        seeds.append(path.read_bytes())

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _read(task, path)

    return Target(run=run, seeds=seeds)

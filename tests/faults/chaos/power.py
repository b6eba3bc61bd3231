"""A power cut: the files of a folder as a disk may have them that was told to sync some of it.

What was not fsynced since it was written is cut short, and a name that was not synced with its
folder may be gone. SQLite's files are left as they are: it syncs by itself, where nothing can
watch it.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

Stamp = tuple[int, int]


class Power:
    """Watches what is synced below ``folder``; what is there at the start has been long ago."""

    def __init__(self, folder: str, seed: int) -> None:
        self._folder = Path(folder)
        self._chance = random.Random(seed)
        self._files: dict[int, Stamp] = {}
        self._names: dict[int, set[str]] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in [self._folder, *self._folder.rglob("*")]:
            self._note(path.stat().st_ino, path)

    def synced(self, descriptor: int) -> None:
        """A file or folder was fsynced."""
        link = Path(f"/proc/self/fd/{descriptor}").readlink()
        if link.exists():
            self._note(os.fstat(descriptor).st_ino, link)

    def cut(self) -> None:
        """Leave what a disk may have kept."""
        for path in sorted(self._folder.rglob("*")):
            if "sqlite" in path.name or path.name == ".lock" or not path.exists():
                continue
            known = self._names.get(path.parent.stat().st_ino, set())
            if path.name not in known and self._chance.random() < 0.5:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif path.is_file():
                now, then = _stamp(path), self._files.get(path.stat().st_ino, (0, 0))
                if now != then:
                    least, most = min(then[0], now[0]), now[0]
                    os.truncate(path, self._chance.choice((least, (least + most) // 2, most)))

    def _note(self, inode: int, path: Path) -> None:
        if path.is_dir():
            self._names[inode] = {each.name for each in path.iterdir()}
        else:
            self._files[inode] = _stamp(path)


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns

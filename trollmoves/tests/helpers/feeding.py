"""Feeds a folder with files as a reception system does."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

PATTERN = "H-000-{series:6s}-{platform_name:12s}-{channel:9s}-{segment:9s}-{nominal_time:%Y%m%d%H%M}-__"
CHANNELS = [
    "VIS006",
    "VIS008",
    "IR_016",
    "IR_039",
    "WV_062",
    "WV_073",
    "IR_087",
    "IR_097",
    "IR_108",
    "IR_120",
    "IR_134",
]


def names(first: int = 0) -> Iterator[str]:
    """Yield the names of satellite segments in the order of their slots, starting at number ``first``."""

    def all_of_them() -> Iterator[str]:
        for slot in itertools.count():
            day, quarter = divmod(slot, 96)
            when = f"2025{1 + day // 28 % 12:02d}{1 + day % 28:02d}{quarter // 4:02d}{15 * (quarter % 4):02d}"
            for channel, segments in [("", 1), *((name, 8) for name in CHANNELS), ("HRV", 24)]:
                for number in range(1, segments + 1):
                    segment = f"{number:06d}" if channel else "PRO"
                    yield f"H-000-MSG4__-MSG4________-{channel:_<9s}-{segment:_<9s}-{when}-__"

    return itertools.islice(all_of_them(), first, None)


def content(name: str, version: int = 1, size: int = 1000) -> bytes:
    """Return the bytes that belong into a file: no two files, and no two versions, have the same."""
    seed = hashlib.sha256(os.fsencode(f"{name} {version}")).digest()
    return (seed * (size // len(seed) + 1))[:size]


class Feeder:
    """Adds files to a folder, each by an atomic rename, as a reception system does.

    Names start at number ``first``; feeders with distant numbers use different names.
    """

    def __init__(self, folder: Path, first: int = 0) -> None:
        self.folder = folder
        self.fed: dict[str, bytes] = {}
        self._staging = folder.with_name(f"{folder.name}-staging")
        self._names = names(first)
        folder.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)

    def feed(self, count: int = 1, *, size: int = 1000, pause: float = 0.0) -> list[str]:
        """Add ``count`` files with ``pause`` seconds between them; return their names."""
        fed = []
        for name in itertools.islice(self._names, count):
            self.put(name, size=size)
            fed.append(name)
            if pause:
                time.sleep(pause)
        return fed

    def fresh_names(self) -> Iterator[str]:
        """Yield names that have not been fed yet, and will not be."""
        return self._names

    def put(self, name: str, *, version: int = 1, size: int = 1000) -> Path:
        """Add one file, or replace the one of the same name; return its path."""
        self.fed[name] = content(name, version, size)
        staged = self._staging / name
        staged.write_bytes(self.fed[name])
        path = self.folder / name
        while path.exists() and path.stat().st_mtime_ns == staged.stat().st_mtime_ns:  # the disk's clock is coarse
            staged.write_bytes(self.fed[name])
        return staged.rename(path)

    def all_delivered(self, target: Path) -> bool:
        """Return True if all files are complete at the target."""
        return not self.missing(target)

    def missing(self, target: Path) -> list[str]:
        """Return the names of the files that are missing or incomplete at the target."""
        return [name for name, expected in self.fed.items() if not _holds(target / name, expected)]


def _holds(path: Path, expected: bytes) -> bool:
    try:
        return path.read_bytes() == expected
    except FileNotFoundError:
        return False

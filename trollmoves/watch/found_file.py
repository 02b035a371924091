"""A file reported by a DirectoryWatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A completely written file.

    ``path`` is absolute and decoded as ``os.fsdecode`` does. If ``path`` is a symbolic link, size, time and inode are
    those of its target. ``fresh`` is False if a listing, not an event, reported the file.
    """

    path: str
    fields: dict[str, Any]  # parsed from the path with the origin pattern
    size: int
    mtime_ns: int
    inode: int
    fresh: bool

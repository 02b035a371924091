"""Where a path leads when its symbolic links are followed, and whether they can be trusted."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator

MOST_LINKS = 40  # on one way, as the kernel has it
_DELETED = " (deleted)"  # what the kernel puts behind the path of a file whose name is gone


def opened_path(fd: int, path: str) -> str:
    """Give the path, without links, of a file that was opened as ``path``, whatever became of that name since.

    OSError when that cannot be told.
    """
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # no /proc: then it must be what the name stands for now
        found = os.path.realpath(path, strict=True)
        if not os.path.samestat(os.stat(found), os.fstat(fd)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path) from None
    return found.removesuffix(_DELETED) if not os.fstat(fd).st_nlink else found


def real_paths(paths: Iterable[str]) -> Iterator[str]:
    """Give for absolute paths where they lead; quick when many are in the same few directories."""
    directories: dict[str, str] = {}
    for path in paths:
        directory, _, name = path.rpartition("/")
        if directory not in directories:
            directories[directory] = os.path.realpath(directory or "/").rstrip("/")
        yield os.path.realpath(path) if os.path.islink(path) else f"{directories[directory]}/{name}"


def is_below(path: str, directory: str) -> bool:
    """Tell whether one path, without links, is in or below a directory, without links."""
    return path.startswith(directory.rstrip("/") + "/")


def strange_link(path: str) -> str:
    """Give a symbolic link on the way of a path that cannot be trusted; empty when there is none.

    A link is trusted that belongs to this process's user, to root, or to the owner of what the path leads to: so
    nobody can link to what only we may read. Raises OSError.
    """
    trusted = {0, os.geteuid(), os.stat(path).st_uid}
    return next((link for link, owner in _links(path) if owner not in trusted), "")


def _links(path: str) -> Iterator[tuple[str, int]]:
    """Yield each link on the way of an absolute path, with its owner."""
    left = path.split("/")[::-1]
    here = ""
    followed = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here).rstrip("/")
            continue
        status = os.lstat(f"{here}/{part}")
        if not stat.S_ISLNK(status.st_mode):
            here = f"{here}/{part}"
            continue
        yield f"{here}/{part}", status.st_uid
        followed += 1
        if followed > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(f"{here}/{part}")
        here = "" if target.startswith("/") else here
        left += target.split("/")[::-1]

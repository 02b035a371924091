"""Where a path leads when its symbolic links are followed, and whether they can be trusted."""

from __future__ import annotations

import errno
import os
import stat

MOST_LINKS = 40  # on one way, as the kernel has it
_DELETED = " (deleted)"  # what the kernel puts behind the path of a file whose name is gone


def path_of_fd(fd: int, path: str) -> str:
    """Give the path, without links, of a file that was opened as ``path``, whatever became of that name since.

    OSError when that cannot be told.
    """
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # no /proc: then it must be what the name stands for now
        found = os.path.realpath(path, strict=True)
        if not os.path.samestat(os.stat(found), os.fstat(fd)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path) from None
    if found.endswith(_DELETED) and not os.fstat(fd).st_nlink:
        return found.removesuffix(_DELETED)
    return found


def is_below(path: str, directory: str) -> bool:
    """Tell whether one path, without links, is in or below a directory, without links."""
    return path.startswith(directory.rstrip("/") + "/")


def resolve(path: str) -> tuple[str, str]:
    """Give where an absolute path leads, and a symbolic link on the way that cannot be trusted, if there is one.

    A link is trusted that belongs to this process's user, to root, or to the owner of what the path leads to: so
    nobody can link to what only we may read. Raises OSError.
    """
    owners: dict[str, int] = {}
    real = _walk(path, owners)
    trusted = {0, os.geteuid(), os.lstat(real).st_uid}
    return real, next((link for link, owner in owners.items() if owner not in trusted), "")


def _walk(path: str, owners: dict[str, int]) -> str:
    """Follow a path as the kernel does; note each link on the way, with its owner."""
    left = path.split("/")[::-1]
    here = ""
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = here.rpartition("/")[0]
            continue
        status = os.lstat(f"{here}/{part}")
        if not stat.S_ISLNK(status.st_mode):
            here = f"{here}/{part}"
            continue
        owners[f"{here}/{part}"] = status.st_uid
        if len(owners) > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(f"{here}/{part}")
        if target.startswith("/"):
            here = ""
        left += target.split("/")[::-1]
    return here

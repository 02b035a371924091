"""Resolves the symbolic links of a path, and decides whether they can be trusted."""

from __future__ import annotations

import errno
import os
import stat

MAX_LINKS = 40  # in one path, the limit of the kernel
_DELETED = " (deleted)"  # suffix that the kernel adds to the path of a deleted file


def path_of_fd(fd: int, path: str) -> str:
    """Return the resolved path of an open file, even if ``path``, under which it was opened, has changed since.

    Raises:
        OSError: the path cannot be determined.
    """
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # without /proc, the path must still lead to this file
        found = os.path.realpath(path, strict=True)
        if not os.path.samestat(os.stat(found), os.fstat(fd)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path) from None
    if found.endswith(_DELETED) and not os.fstat(fd).st_nlink:
        return found.removesuffix(_DELETED)
    return found


def is_below(path: str, directory: str) -> bool:
    """Return True if a resolved path is inside a resolved directory or below it."""
    return path.startswith(directory.rstrip("/") + "/")


def resolve(path: str) -> tuple[str, str]:
    """Return the target of an absolute path, and the first untrusted symbolic link in it, or an empty string.

    A link is trusted if it belongs to the user of this process, to root, or to the owner of the target. Therefore no
    other user can link to files that only this process may read.

    Raises:
        OSError: the path cannot be resolved.
    """
    owners: dict[str, int] = {}
    real = _walk(path, owners)
    trusted = {0, os.geteuid(), os.lstat(real).st_uid}
    return real, next((link for link, owner in owners.items() if owner not in trusted), "")


def _walk(path: str, owners: dict[str, int]) -> str:
    """Resolve a path as the kernel does; add the owner of each link to ``owners``."""
    remaining = path.split("/")[::-1]
    here = ""
    while remaining:
        part = remaining.pop()
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
        if len(owners) > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(f"{here}/{part}")
        if target.startswith("/"):
            here = ""
        remaining += target.split("/")[::-1]
    return here

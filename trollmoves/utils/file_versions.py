"""The version of a file, and the removal of exactly one version."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from trollmoves.utils.symlinks import path_of_fd

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_RENAME_NOREPLACE = 1
_SUFFIX = ".removing"
_REMOVAL_TIMEOUT = 10.0  # s that others wait for a removal of this process

T = TypeVar("T")

_removals = threading.Condition()
_paths_in_removal: set[str] = set()


class FileVersion(NamedTuple):
    """The identity of one content of a file; each new content differs in at least one of the values."""

    inode: int
    size: int
    mtime_ns: int


def size_of(path: str) -> int:
    """Return the size of a regular file in bytes; 0 if there is none at ``path``."""
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def version_of(status: os.stat_result) -> FileVersion:
    """Return the version with this status."""
    return FileVersion(status.st_ino, status.st_size, status.st_mtime_ns)


def remove_version(path: str, version: FileVersion, check: Callable[[str], None] | None = None) -> bool:
    """Remove the file ``path`` if it is exactly ``version``; return False, and keep it, if it is another version.

    The directory is opened once, and all steps act through its descriptor. The file is renamed to a hidden name before
    the last comparison, so that a file that takes its name in between is never removed. A symbolic link is removed if
    its target is ``version``.

    Args:
        path: the file.
        version: the content that may be removed.
        check: called with the resolved path of the file, and with that of its target if it is a link; the file is kept
            if it raises.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be removed.
    """
    directory, name = os.path.split(path)
    fd = os.open(directory or ".", _DIRECTORY)
    try:
        _paths_in_removal.add(path)
        if check is not None:
            _check(fd, name, directory, check)
        return remove_version_at(fd, name, version)
    finally:
        os.close(fd)
        with _removals:
            _paths_in_removal.discard(path)
            _removals.notify_all()


def despite_removal(path: str, access: Callable[[str], T]) -> T:
    """Return ``access(path)``, also while a removal of an older version in this process hides the file for a moment.

    Any thread. Raises as ``access`` does, FileNotFoundError only after that removal.
    """
    try:
        return access(path)
    except FileNotFoundError:
        with _removals:
            _removals.wait_for(lambda: path not in _paths_in_removal, _REMOVAL_TIMEOUT)
        return access(path)


def _check(directory: int, name: str, path: str, check: Callable[[str], None]) -> None:
    check(os.path.join(path_of_fd(directory, path), name))
    if stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
        target = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
        try:
            check(path_of_fd(target, os.path.join(path, name)))
        finally:
            os.close(target)


def hidden_name(name: str, version: FileVersion) -> str:
    """Return the name of a file during its removal; the same after a kill."""
    digest = hashlib.blake2b(f"{name}\0{version}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return f".{digest}{_SUFFIX}"


def remove_version_at(directory: int, name: str, version: FileVersion) -> bool:
    """Remove a file of an open directory, as ``remove_version`` does; ``directory`` is its descriptor."""
    hidden = hidden_name(name, version)
    try:
        matches = version_of(os.stat(name, dir_fd=directory)) == version
    except FileNotFoundError:
        if not _finish(directory, name, hidden, version):
            raise
        return True
    if not matches:
        _finish(directory, name, hidden, version)
        return False
    os.rename(name, hidden, src_dir_fd=directory, dst_dir_fd=directory)
    return _finish(directory, name, hidden, version)


def _finish(directory: int, name: str, hidden: str, version: FileVersion) -> bool:
    """Remove the hidden file and return True if it is ``version``; else give it its name back and return False."""
    try:
        matches = version_of(os.stat(hidden, dir_fd=directory)) == version
    except FileNotFoundError:
        return False
    if not matches:
        try:
            _rename_noreplace(directory, hidden, name)
            return False
        except FileExistsError:
            pass  # a newer version has taken the name
    with suppress(FileNotFoundError):
        os.unlink(hidden, dir_fd=directory)
    return matches


def _rename_noreplace(directory: int, old: str, new: str) -> None:
    """Rename within a directory; FileExistsError if ``new`` exists."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        if rename(directory, os.fsencode(old), directory, os.fsencode(new), _RENAME_NOREPLACE) == 0:
            return
        if ctypes.get_errno() == errno.EEXIST:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.link(old, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    os.unlink(old, dir_fd=directory)

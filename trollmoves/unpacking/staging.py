"""The hidden directory in which a file is unpacked, beside where it will appear.

It is on the same file system as the target directory, so that whole files get their names by renaming. Its name is
made from that of the packed file, and while it is in use it is locked: when the same file is unpacked again after a
``kill -9``, what that left is found, unlocked, and cleared.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import BinaryIO

from trollmoves.errors import UnpackFailed

SUFFIX = ".unpacking"
FILE_MODE = 0o664  # before the umask
DIRECTORY_MODE = 0o775  # before the umask
TRIES = 10  # to rename a file into a directory that others take away
_LOCK = "lock"
_LONGEST_NAME = 200  # bytes of the packed file's name; with all else it stays under the 255 that a name may have
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class StagingDirectory:
    """A ``with`` block in which one file is unpacked; used by one thread, beside any number of others.

    Attributes:
        path: a new directory that nobody else can read, gone at the end of the block with all that is in it.
        directory: where the files go, absolute; made when it is missing.
    """

    def __init__(self, packed: str, directory: str) -> None:
        self.packed = packed
        self.directory = os.path.abspath(directory)
        self.path = ""
        self._claimed = ""
        self._lock = -1

    def __enter__(self) -> StagingDirectory:
        """Claim a hidden directory; raises OSError."""
        _make_directories(self.directory)
        try:
            self._claimed, self._lock = _acquire(os.path.join(self.directory, _hidden_name(self.packed)))
        except OSError:
            # In use, somebody else's, or on a file system without locks: one that nobody has used before will do.
            self._claimed = tempfile.mkdtemp(SUFFIX, ".", self.directory)
        try:
            # The program of a killed process may still be writing to an earlier one.
            self.path = tempfile.mkdtemp(dir=self._claimed)
        except BaseException:
            self._cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind."""
        self._cleanup()

    def new_file(self, name: str) -> BinaryIO:
        """Open a new file of that name in ``path`` for writing; its own ``name`` is then its path. Raises OSError."""
        path = os.path.join(self.path, name)
        return open(path, "xb", opener=partial(os.open, mode=FILE_MODE))

    def check_free_space(self, size: int) -> None:
        """Raise ``OSError`` (ENOSPC) when the disk has no room for so many bytes, rather than fill it first."""
        disk = os.statvfs(self.path)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def commit(self, files: Mapping[str, str]) -> list[str]:
        """Give whole files their names, each at once in place of what is there; return their paths, in that order.

        Args:
            files: by its name below ``directory`` (relative, without ``..``) the path of each file in ``path``.

        Raises:
            OSError, UnpackFailed: one cannot have its name; those that were new then are taken away again.
        """
        finals = {os.path.join(self.directory, name): path for name, path in files.items()}
        self._check(list(finals))
        new: list[str] = []
        made: list[str] = []
        try:
            for final, path in finals.items():
                is_new = not os.path.lexists(final)
                _rename(path, final, made)
                if is_new:
                    new.append(final)
        except BaseException:
            _roll_back(new, made)
            raise
        return list(finals)

    def _check(self, finals: list[str]) -> None:
        root = os.path.join(os.path.realpath(self.directory), "")
        for parent in {os.path.dirname(final) for final in finals}:
            if not os.path.join(os.path.realpath(parent), "").startswith(root):
                raise UnpackFailed(f"{self.packed}: {parent} is a link that leads out of {self.directory}")
        for final in finals:
            with suppress(FileNotFoundError):
                there = os.lstat(final)
                if stat.S_ISDIR(there.st_mode):
                    raise IsADirectoryError(errno.EISDIR, f"{final} is a directory")
                if any(os.path.samestat(there, look(self.packed)) for look in (os.stat, os.lstat)):
                    raise UnpackFailed(f"{self.packed}: what is in it would replace it")

    def _cleanup(self) -> None:
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            with suppress(OSError):
                os.unlink(os.path.join(self._claimed, _LOCK))
            # Now, as some file systems keep an open file under another name in its directory.
            os.close(self._lock)
            self._lock = -1
        with suppress(OSError):  # somebody else may have claimed it already
            os.rmdir(self._claimed)


def is_staging_name(name: str) -> bool:
    """Tell whether a ``Place`` may have that name."""
    return name.startswith(".") and name.endswith(SUFFIX)


def _hidden_name(packed: str) -> str:
    name = os.fsencode(_CONTROL.sub("_", os.path.basename(packed)))[:_LONGEST_NAME].decode("utf-8", "ignore")
    identity = os.fsencode(os.path.realpath(packed)) + b"/%d" % os.geteuid()
    return f".{name}.{hashlib.sha256(identity).hexdigest()[:12]}{SUFFIX}"


def _acquire(path: str) -> tuple[str, int]:
    """Make the directory ``path``, or take over what a killed process left there; return it and its lock."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise
    try:
        lock = _locked(os.path.join(path, _LOCK))
    except OSError:
        with suppress(OSError):
            os.rmdir(path)  # nothing to lock was made in it, as on a full disk
        raise
    for name in set(os.listdir(path)) - {_LOCK}:
        shutil.rmtree(os.path.join(path, name), ignore_errors=True)
    return path, lock


def _locked(path: str) -> int:
    """Lock the file ``path``, made when it is missing; ``OSError`` when that cannot be, or somebody else has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:  # a file system without locks
        os.unlink(path)
        os.close(fd)
        raise
    try:
        # Its last owner may have taken it away between the two calls, and somebody else may have made a new one.
        still_there = os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        still_there = False
    if not still_there:
        os.close(fd)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fd


def _make_directories(path: str) -> list[str]:
    """Make ``path`` and those above it, none of them writable for everyone; return those that were missing."""
    made: list[str] = []
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return made
    except FileNotFoundError:
        made = _make_directories(os.path.dirname(path))
        with suppress(FileExistsError):  # somebody else was quicker
            os.mkdir(path, DIRECTORY_MODE)
    return [*made, path]


def _rename(path: str, final: str, made: list[str]) -> None:
    """Give the file its name, making missing directories, which are noted in ``made``."""
    for tries_left in reversed(range(TRIES)):
        try:
            made += _make_directories(os.path.dirname(final))
            os.replace(path, final)
            return
        except FileNotFoundError:  # another unpacking, which failed, took away the directories that it had made
            if not tries_left:
                raise


def _roll_back(files: list[str], directories: list[str]) -> None:
    for file in files:
        with suppress(OSError):
            os.unlink(file)
    for directory in reversed(directories):
        with suppress(OSError):  # others may have put something there
            os.rmdir(directory)

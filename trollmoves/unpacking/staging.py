"""The hidden directory in which a file is unpacked, inside the target directory.

It is on the same file system as the target, so that complete files are renamed into place. Its name is derived from the
packed file, and it is locked while in use: when the same file is unpacked again after a ``kill -9``, the unlocked
directory of the killed process is found and cleared.
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
from typing import BinaryIO

from trollmoves.errors import UnpackFailed
from trollmoves.unpacking.packed_file import PackedFile

SUFFIX = ".unpacking"
FILE_MODE = 0o664  # before the umask
DIRECTORY_MODE = 0o775  # before the umask
TRIES = 10  # to rename a file into a directory that other threads may remove
_LOCK = "lock"
_MAX_NAME = 200  # bytes of the packed file's name; the complete name stays below 255 bytes
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class StagingDirectory:
    """Context manager for unpacking one file; used by one thread, concurrently with other instances.

    Attributes:
        path: a new private directory, removed with its content at the end of the block.
        source: the packed file, open.
        packed: its path, for names and error texts.
        directory: absolute path of the target directory; created if missing.
    """

    def __init__(self, source: PackedFile, directory: str) -> None:
        self.source = source
        self.packed = source.path
        self.directory = os.path.abspath(directory)
        self.path = ""
        self._claimed = ""
        self._lock = -1

    def __enter__(self) -> StagingDirectory:
        """Create or take over a hidden directory; raises OSError."""
        _make_directories(self.directory)
        try:
            self._claimed, self._lock = _acquire(os.path.join(self.directory, _hidden_name(self.packed)))
        except OSError:
            # In use, owned by another user, or a file system without locks: use a new directory.
            self._claimed = tempfile.mkdtemp(SUFFIX, ".", self.directory)
        try:
            # The program of a killed process may still be writing to an earlier one.
            self.path = tempfile.mkdtemp(dir=self._claimed)
        except BaseException:
            self._cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the directory."""
        self._cleanup()

    def new_file(self, name: str) -> BinaryIO:
        """Open a new file of that name in ``path`` for writing; its attribute ``name`` is its path. Raises OSError."""
        path = os.path.join(self.path, name)
        return open(path, "xb", opener=partial(os.open, mode=FILE_MODE))

    def check_free_space(self, size: int) -> None:
        """Raise ``OSError`` (ENOSPC) if the disk has less than ``size`` bytes free, instead of filling it."""
        disk = os.statvfs(self.path)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def commit(self, files: Mapping[str, str]) -> list[str]:
        """Rename complete files to their names, replacing existing ones atomically; return the paths in order.

        Args:
            files: path of each file in ``path``, by its name relative to ``directory`` (without ``..``).

        Raises:
            OSError, UnpackFailed: a file cannot be renamed; new files are removed again.
            TemporaryUnpackError: the packed file was modified since it was opened.
        """
        self.source.check_unchanged()
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
                raise UnpackFailed(f"{self.packed}: {parent} is a link to a directory outside of {self.directory}")
        own = [self.source.status]
        with suppress(FileNotFoundError):
            own.append(os.lstat(self.packed))
        for final in finals:
            with suppress(FileNotFoundError):
                status = os.lstat(final)
                if stat.S_ISDIR(status.st_mode):
                    raise IsADirectoryError(errno.EISDIR, f"{final} is a directory")
                if any(os.path.samestat(status, other) for other in own):
                    raise UnpackFailed(f"{self.packed}: a member would replace the packed file")

    def _cleanup(self) -> None:
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            with suppress(OSError):
                os.unlink(os.path.join(self._claimed, _LOCK))
            # Close before rmdir: some file systems keep an open deleted file in its directory.
            os.close(self._lock)
            self._lock = -1
        with suppress(OSError):  # another process may have claimed it
            os.rmdir(self._claimed)


def is_staging_name(name: str) -> bool:
    """Return True if a ``StagingDirectory`` may have that name."""
    return name.startswith(".") and name.endswith(SUFFIX)


def _hidden_name(packed: str) -> str:
    name = os.fsencode(_CONTROL.sub("_", os.path.basename(packed)))[:_MAX_NAME].decode("utf-8", "ignore")
    identity = os.fsencode(os.path.realpath(packed)) + b"/%d" % os.geteuid()
    return f".{name}.{hashlib.sha256(identity).hexdigest()[:12]}{SUFFIX}"


def _acquire(path: str) -> tuple[str, int]:
    """Create the directory ``path``, or take over that of a killed process; return it and its lock."""
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
            os.rmdir(path)  # no lock file was created, as on a full disk
        raise
    for name in set(os.listdir(path)) - {_LOCK}:
        shutil.rmtree(os.path.join(path, name), ignore_errors=True)
    return path, lock


def _locked(path: str) -> int:
    """Lock the file ``path``, created if missing; ``OSError`` if another process holds it or locks are missing."""
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
        # The last owner may have removed it between the two calls, and another process may have created a new one.
        still_there = os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        still_there = False
    if not still_there:
        os.close(fd)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fd


def _make_directories(path: str) -> list[str]:
    """Create ``path`` and its parents, not world-writable; return those that were missing."""
    made: list[str] = []
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return made
    except FileNotFoundError:
        made = _make_directories(os.path.dirname(path))
        with suppress(FileExistsError):  # created by another thread or process
            os.mkdir(path, DIRECTORY_MODE)
    return [*made, path]


def _rename(path: str, final: str, made: list[str]) -> None:
    """Rename the file, creating missing directories, which are appended to ``made``."""
    for tries_left in reversed(range(TRIES)):
        try:
            made += _make_directories(os.path.dirname(final))
            os.replace(path, final)
            return
        except FileNotFoundError:  # a concurrent unpacking failed and removed the directories it had created
            if not tries_left:
                raise


def _roll_back(files: list[str], directories: list[str]) -> None:
    for file in files:
        with suppress(OSError):
            os.unlink(file)
    for directory in reversed(directories):
        with suppress(OSError):  # it may contain files of other unpackings
            os.rmdir(directory)

"""Delivers files on this host's own file systems.

A copy is a real one: a hard link would share the inode with the origin, so that a producer that rewrites its file in
place would change what was delivered. ``hard_link`` allows it for those who know that theirs do not.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from trollmoves.movers.base import Backend, Mover, SourceFile, translate_os_errors
from trollmoves.utils import failpoints

SMALL_FILE = 1 << 20  # bytes that are read and written at once, which is cheaper than asking the kernel for clever ways
BLOCK = 1 << 20
COPY_RANGE_BYTES = 1 << 26  # bytes the kernel is asked to copy in one call
_FICLONE = 0x40049409  # fcntl has no name for it before Python 3.12
_NOT_OFFERED = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EPERM}
DIRECTORY_MODE = 0o775  # before the umask


class LocalBackend(Backend):
    """This host's file systems as a far end."""

    def __init__(self, *, hard_link: bool = False, fsync: bool = False) -> None:
        self.hard_link = hard_link
        self.fsync = fsync

    def is_directory(self, path: str) -> bool:
        """Tell whether ``path`` is a directory."""
        return os.path.isdir(path)

    def make_directories(self, path: str) -> None:
        """Make ``path`` and those above it, none of them writable for everyone."""
        try:
            os.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        except FileNotFoundError:
            self.make_directories(os.path.dirname(path) or "/")
            with suppress(FileExistsError):  # another delivery was quicker
                os.mkdir(path, DIRECTORY_MODE)

    def send(self, source: SourceFile, path: str) -> None:
        """Write the source's bytes, permissions and modification time to the new file ``path``."""
        if self.hard_link and _try_link(source, path):
            return
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, source.mode)
        try:
            failpoints.hit("sending")
            _copy(source, target)
            os.utime(target, ns=(source.status.st_atime_ns, source.status.st_mtime_ns))
            if self.fsync:
                os.fsync(target)
        finally:
            os.close(target)

    def size(self, path: str) -> int:
        """Return the bytes in ``path``."""
        return os.stat(path).st_size

    def replace(self, partial: str, final: str) -> None:
        """Rename at once."""
        os.replace(partial, final)
        if self.fsync:
            _fsync_directory(os.path.dirname(final))

    def remove(self, path: str) -> None:
        """Remove ``path``."""
        with suppress(FileNotFoundError):
            os.unlink(path)


class FileMover(Mover):
    """Delivers to a path on this host, whatever host stands in the URL."""

    def copy(self) -> None:
        """Deliver a copy; one system call less wherever there is a choice, as a server does this for each request."""
        with translate_os_errors(self), self.open() as source:
            self.deliver(self._files(), source)

    def move(self) -> None:
        """Rename where one file system holds both, else copy, verify and remove the origin."""
        with translate_os_errors(self), self.open() as source:
            files = self._files()
            final = self._final_path(files)
            if _same_entry(self.origin, final):
                return
            if os.path.islink(self.origin) or self.is_same_file(source, final) or not _try_rename(source, final, files):
                self.deliver(files, source)
                self.remove_origin()

    def is_same_file(self, source: SourceFile, final: str) -> bool:
        """Tell whether ``final`` is the source's own inode."""
        try:
            there = os.stat(final)
        except OSError:
            return False
        return there.st_ino == source.status.st_ino and there.st_dev == source.status.st_dev

    def _files(self) -> LocalBackend:
        if not self.attrs:
            return LocalBackend()
        return LocalBackend(hard_link=self.option("hard_link"), fsync=self.option("fsync"))


def _try_link(source: SourceFile, path: str) -> bool:
    try:
        os.link(source.path, path)
    except OSError as error:
        if error.errno in (*_NOT_OFFERED, errno.EMLINK):
            return False
        raise
    # The name may have been given to another file since the source was opened.
    there = os.lstat(path)
    if stat.S_ISREG(there.st_mode) and there.st_ino == source.status.st_ino:
        return True
    os.unlink(path)
    return False


def _same_entry(one: str, other: str) -> bool:
    """Tell whether two paths are one name in one directory: two names of one inode are not."""
    if os.path.basename(one) != os.path.basename(other):
        return False
    with suppress(OSError):
        return os.path.samefile(os.path.dirname(one) or ".", os.path.dirname(other) or ".")
    return False


def _try_rename(source: SourceFile, final: str, files: LocalBackend) -> bool:
    """Rename the source to ``final``; False where a rename cannot do that."""
    try:
        os.replace(source.path, final)
    except FileNotFoundError:
        files.make_directories(os.path.dirname(final) or "/")
        return _retry_rename(source, final)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    if files.fsync:
        os.fsync(source.fd)
        _fsync_directory(os.path.dirname(final))
    return True


def _retry_rename(source: SourceFile, final: str) -> bool:
    try:
        os.replace(source.path, final)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def _fsync_directory(path: str) -> None:
    directory = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _copy(source: SourceFile, target: int) -> None:
    """Write all of ``source`` to the empty file ``target``."""
    if source.size <= SMALL_FILE:
        _write(target, source.read(source.size + 1) if source.size else b"")
    elif not _try_clone(source, target):
        _copy_large(source, target)


def _write(target: int, data: bytes) -> None:
    written = os.write(target, data)
    while written < len(data):
        data = data[written:]
        written = os.write(target, data)


def _try_clone(source: SourceFile, target: int) -> bool:
    """Share the blocks, where the file system can."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source.fd)
    except OSError:
        return False
    return True


def _copy_large(source: SourceFile, target: int) -> None:
    """Copy in the kernel, else through this process."""
    done = 0
    with suppress(OSError):  # what a kernel, or a file system, does not offer the loop below does, or fails on clearly
        while done < source.size:
            sent = os.copy_file_range(source.fd, target, min(COPY_RANGE_BYTES, source.size - done))
            if not sent:
                break
            done += sent
    while block := source.read(BLOCK):
        _write(target, block)

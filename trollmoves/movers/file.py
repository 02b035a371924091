"""Delivers files on the file systems of this host.

Files are copied by default: a hard link shares the inode with the origin, so that a producer that rewrites its file in
place would also change the delivered file. ``hard_link`` allows links for producers that never do this.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress

from trollmoves.errors import TemporaryTransferError
from trollmoves.movers.base import Backend, Mover
from trollmoves.movers.os_errors import translate_os_errors
from trollmoves.movers.source_file import SourceFile

SMALL_FILE = 1 << 20  # bytes; up to this size one read and one write are faster than reflinks or copy_file_range
BLOCK = 1 << 20
KERNEL_BLOCK = 1 << 26  # bytes per call that copies in the kernel
_FICLONE = 0x40049409  # fcntl has no name for it before Python 3.12
_NOT_OFFERED = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EPERM}
DIRECTORY_MODE = 0o775  # before the umask


class LocalBackend(Backend):
    """Backend for the file systems of this host."""

    def __init__(self, *, hard_link: bool = False, fsync: bool = False) -> None:
        self.hard_link = hard_link
        self.fsync = fsync

    def is_directory(self, path: str) -> bool:
        """Return True if ``path`` is a directory."""
        return os.path.isdir(path)

    def make_directories(self, path: str) -> None:
        """Create ``path`` and its parents, not world-writable."""
        try:
            os.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        except FileNotFoundError:
            self.make_directories(os.path.dirname(path) or "/")
            with suppress(FileExistsError):  # created by a concurrent delivery
                os.mkdir(path, DIRECTORY_MODE)

    def send(self, source: SourceFile, path: str) -> None:
        """Write the source's bytes, permissions and modification time to the new file ``path``."""
        if self.hard_link and _try_link(source, path):
            return
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, source.mode)
        try:
            _copy(source, target)
            os.utime(target, ns=(source.status.st_atime_ns, source.status.st_mtime_ns))
            if self.fsync:
                os.fsync(target)
        finally:
            os.close(target)

    def size(self, path: str) -> int:
        """Return the size of ``path`` in bytes."""
        return os.stat(path).st_size

    def verify(self, source: SourceFile, path: str) -> None:
        """Compare SHA-256 sums."""
        with open(path, "rb") as copy:
            if hashlib.file_digest(copy, "sha256").hexdigest() != source.digest("sha256"):
                raise TemporaryTransferError(f"{path}: the SHA-256 sum differs from that of the file")

    def replace(self, partial: str, final: str) -> None:
        """Rename atomically."""
        os.replace(partial, final)
        if self.fsync:
            _fsync_directory(os.path.dirname(final))

    def remove(self, path: str) -> None:
        """Remove ``path``."""
        with suppress(FileNotFoundError):
            os.unlink(path)


class FileMover(Mover):
    """Delivers to a path on this host; the host of the URL is ignored."""

    def copy(self) -> None:
        """Deliver a copy, with few system calls: a server runs this for each request."""
        with translate_os_errors(self), self.open() as source:
            self.deliver(self._files(), source)

    def move(self) -> None:
        """Rename within one file system, else copy, verify and remove the origin."""
        with translate_os_errors(self), self.open() as source:
            files = self._files()
            final = self._final_path(files)
            if _same_entry(self.origin, final):
                return
            if os.path.islink(self.origin) or self.is_same_file(source, final) or not _try_rename(source, final, files):
                self.deliver(files, source)
                self.remove_origin()

    def check(self, name: str) -> bool:
        """Write the origin under ``name`` to the destination, and remove it; return False without the directory."""
        with translate_os_errors(self), self.open() as source:
            return self.write_and_remove(self._files(), source, name)

    def is_same_file(self, source: SourceFile, final: str) -> bool:
        """Return True if ``final`` has the inode of the source."""
        try:
            status = os.stat(final)
        except OSError:
            return False
        return status.st_ino == source.status.st_ino and status.st_dev == source.status.st_dev

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
    # The path may be another file since the source was opened.
    status = os.lstat(path)
    if stat.S_ISREG(status.st_mode) and status.st_ino == source.status.st_ino:
        return True
    os.unlink(path)
    return False


def _same_entry(path: str, other: str) -> bool:
    """Return True if two paths are the same directory entry; two hard links are not."""
    if os.path.basename(path) != os.path.basename(other):
        return False
    with suppress(OSError):
        return os.path.samefile(os.path.dirname(path) or ".", os.path.dirname(other) or ".")
    return False


def _try_rename(source: SourceFile, final: str, files: LocalBackend) -> bool:
    """Rename the source to ``final``; return False across file systems."""
    try:
        try:
            os.replace(source.path, final)
        except FileNotFoundError:
            files.make_directories(os.path.dirname(final) or "/")
            os.replace(source.path, final)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    if files.fsync:
        os.fsync(source.fd)
        _fsync_directory(os.path.dirname(final))
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
    """Clone the blocks (reflink); return False if the file system cannot."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source.fd)
    except OSError:
        return False
    return True


def _copy_large(source: SourceFile, target: int) -> None:
    """Copy with copy_file_range, the rest, as between file systems, with sendfile, then with read and write."""
    done = 0
    for copy in (os.copy_file_range, _sendfile):
        with suppress(OSError):  # on errors, such as an unsupported call, the next way copies the rest or raises
            while done < source.size and (sent := copy(source.fd, target, min(KERNEL_BLOCK, source.size - done))):
                done += sent
    while block := source.read(BLOCK):
        _write(target, block)


def _sendfile(source: int, target: int, count: int) -> int:
    return os.sendfile(target, source, None, count)

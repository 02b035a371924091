"""The files of a journal, and the lock that ties them to one process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import stat
import time
from contextlib import suppress
from pathlib import Path

from trollmoves.errors import JournalError, JournalFull, UnsupportedValue
from trollmoves.journal.location import LOCK_SUFFIX

logger = logging.getLogger(__name__)

READ_TIMEOUT = 5.0  # s to wait for a lock of the file
WAL_SUFFIXES = ("-wal", "-shm")  # suffixes of the files that SQLite keeps next to an open journal
LOCK_ATTEMPTS = 10
LOCK_PAUSE = 0.05  # s between two attempts
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)  # the latter if shared memory cannot grow


def to_journal_error(text: str, error: Exception) -> JournalError:
    """Return JournalFull for a full disk, UnsupportedValue for a value that SQLite cannot store, else JournalError."""
    if isinstance(error, (OverflowError, sqlite3.DataError)) or "binding parameter" in str(error):
        return UnsupportedValue(text)
    full = getattr(error, "errno", 0) in _FULL or getattr(error, "sqlite_errorcode", 0) in _SQLITE_FULL
    return (JournalFull if full else JournalError)(text)


def open_private(path: str) -> int:
    """Open or create a file of the journal, for the owner only, and return its descriptor.

    Raise OSError if it is a symbolic link or not a regular file.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, f"{path} is a symbolic link, which another user may have created; use its target")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path} must be a regular file")
    return descriptor


def connect_read_only(path: str, *, immutable: bool = False) -> sqlite3.Connection:
    """Open a database only for reading; ``immutable`` if no process writes it, so that no file is created for that."""
    uri = f"{Path(path).absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
    return sqlite3.connect(uri, uri=True, timeout=READ_TIMEOUT, isolation_level=None)


def make_private(path: str) -> None:
    """Make an existing file of the journal readable by the owner only; OSError if that fails."""
    # With O_PATH, because closing any other descriptor would release the locks of this process on the file.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        permissions = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if permissions & ~0o600:
            os.chmod(f"/proc/self/fd/{descriptor}", 0o600)
            logger.warning(
                "%s had the permissions %04o, changed them to 0600: other users could access it", path, permissions
            )
    finally:
        os.close(descriptor)


def journal_size(path: str) -> int:
    """Return the bytes of the files of a journal."""
    return sum(file_size(path + suffix) for suffix in ("", *WAL_SUFFIXES))


def file_size(path: str) -> int:
    """Return the bytes of a file, 0 if it is missing."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def write_times(lock: int, alive: float, written: float) -> None:
    """Store two times in a lock file. They survive the death of the process; a failed write is ignored.

    The process was alive at the first one, and wrote to the journal at the second one.
    """
    with suppress(OSError):
        os.pwrite(lock, f"{alive:020.6f} {written:020.6f}\n".encode(), 0)


def read_times(lock: int) -> tuple[float, float]:
    """Return the two times in a lock file, 0 if they are missing."""
    try:
        alive, written = os.pread(lock, 41, 0).split()
        return float(alive), float(written)
    except (OSError, ValueError):
        return 0.0, 0.0


def file_id(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file, None if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def location_of(path: str) -> str:
    """Return a text that differs for a copy of a file: the machine and the inode."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        machine = ""
    return f"{machine} {os.stat(path).st_ino}"


def acquire_lock(path: str) -> tuple[int, bool]:
    """Create the directory and lock the lock file of the journal until the process ends; JournalError if that fails.

    Return the descriptor, and whether the lock file existed: if so, an existing file at ``path`` is a journal.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        existed = os.path.exists(path + LOCK_SUFFIX)
        lock = open_private(path + LOCK_SUFFIX)
        make_private(path + LOCK_SUFFIX)
    except OSError as error:
        raise to_journal_error(
            f"cannot create the journal {path}: {error.strerror}; "
            "set 'journal' in [DEFAULT] to a file in a directory that this user can write to",
            error,
        ) from error
    try:
        _lock(lock)
    except OSError as error:
        os.close(lock)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise JournalError(f"the journal {path} cannot be locked: {error.strerror}") from error
        raise JournalError(
            f"the journal {path} is in use by another process; give each process its own journal"
        ) from error
    return lock, existed


def _lock(descriptor: int) -> None:
    """Lock a lock file; wait a moment for a command that stores an order."""
    for _ in range(LOCK_ATTEMPTS - 1):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_PAUSE)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

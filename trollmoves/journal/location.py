"""The path of a journal, and the lock that ties it to one process."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import socket
import sqlite3
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from trollmoves.errors import JournalError, JournalFull, UnsupportedValue

logger = logging.getLogger(__name__)

LOCK_SUFFIX = ".lock"  # suffix of the lock file
LOCK_ATTEMPTS = 10
LOCK_PAUSE = 0.05  # s between two attempts
JOURNAL_SUFFIX = ".journal"
MAX_HOST = 64  # characters of the name of a host in the name of a journal
SYSTEM_STATE_DIRECTORY = "/var/lib/trollmoves"  # of daemons that systemd starts
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)  # the latter if shared memory cannot grow


def to_journal_error(text: str, error: Exception) -> JournalError:
    """Return JournalFull for a full disk, UnsupportedValue for a value that SQLite cannot store, else JournalError."""
    if isinstance(error, (OverflowError, sqlite3.DataError)) or "binding parameter" in str(error):
        return UnsupportedValue(text)
    full = getattr(error, "errno", 0) in _FULL or getattr(error, "sqlite_errorcode", 0) in _SQLITE_FULL
    return (JournalFull if full else JournalError)(text)


def journal_path(configured: str, config_file: str, role: str) -> str:
    """Return the path of the journal for a configuration file.

    This is ``configured`` if given, else one file per role, configuration file and host in ``$STATE_DIRECTORY``
    (systemd), ``$XDG_STATE_HOME/trollmoves`` or ``~/.local/state/trollmoves``.
    """
    if configured:
        return os.path.abspath(os.path.expanduser(configured))
    return os.path.join(state_directories()[0], journal_name(config_file, role))


def find_journal(configured: str, config_file: str, role: str) -> str:
    """Return the path of the journal that a daemon uses, for a process with another environment.

    Without ``configured`` it is the newest one in ``state_directories``; ``journal_path`` if there is none.
    """
    if not configured:
        names = (journal_name(config_file, role), journal_name(config_file, role, host=""))
        candidates = (os.path.join(directory, name) for directory in state_directories() for name in names)
        paths = [path for path in candidates if os.path.exists(path)]
        if paths:
            return max(paths, key=os.path.getmtime)
    return journal_path(configured, config_file, role)


def journal_name(config_file: str, role: str, host: str | None = None) -> str:
    """Return the name of the journal of a configuration file that names none.

    It contains the name of this host, since hosts may share a home directory; with an empty ``host`` it does not.
    """
    host = socket.gethostname() if host is None else host
    suffix = re.sub(r"[^A-Za-z0-9.-]", "_", f"-{host}")[:MAX_HOST] if host else ""
    config_file = os.path.abspath(config_file)
    stem = os.path.splitext(os.path.basename(config_file))[0]
    digest = hashlib.sha256(os.fsencode(config_file)).hexdigest()[:8]
    return f"{role}-{stem}-{digest}{suffix}{JOURNAL_SUFFIX}"


def state_directories() -> list[str]:
    """Return the directories of journals without a configured path; a process uses the first one if it can."""
    systemd = [path for path in os.environ.get("STATE_DIRECTORY", "").split(":") if path]
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    own = os.path.join(home, "trollmoves")
    return list(dict.fromkeys([*systemd, own, SYSTEM_STATE_DIRECTORY, *fallback_directories()]))


def fallback_directories() -> list[str]:
    """Return the directories for journals of processes that cannot write their state directory."""
    systemd = [path for path in os.environ.get("RUNTIME_DIRECTORY", "").split(":") if path]
    return [*systemd, os.path.join(tempfile.gettempdir(), f"trollmoves-{os.getuid()}")]


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

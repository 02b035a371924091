"""Where journals live, and whose they are."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3

from trollmoves.errors import JournalError, JournalFull

LOCK_SUFFIX = ".lock"  # at the end of the name of the file that is locked
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)  # the latter when shared memory cannot grow


def to_journal_error(text: str, error: Exception) -> JournalError:
    """Give the error to raise for one that was met: JournalFull when the disk has no room."""
    full = getattr(error, "errno", 0) in _FULL or getattr(error, "sqlite_errorcode", 0) in _SQLITE_FULL
    return (JournalFull if full else JournalError)(text)


def journal_path(configured: str, config_file: str, role: str) -> str:
    """Say where the journal of a configuration file lives.

    ``configured`` if given, else a file of its own for each role and configuration file in ``$STATE_DIRECTORY``
    (systemd), ``$XDG_STATE_HOME/trollmoves`` or ``~/.local/state/trollmoves``.
    """
    if configured:
        return os.path.abspath(os.path.expanduser(configured))
    systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    folder = systemd or os.path.join(home, "trollmoves")
    config_file = os.path.abspath(config_file)
    stem = os.path.splitext(os.path.basename(config_file))[0]
    mark = hashlib.sha256(os.fsencode(config_file)).hexdigest()[:8]
    return os.path.join(folder, f"{role}-{stem}-{mark}.journal")


def acquire_lock(path: str) -> tuple[int, bool]:
    """Make the folder, and hold a lock beside the journal as long as this process lives; JournalError otherwise.

    Gives the descriptor, and whether a lock lay there already: what is there was a journal then.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        known = os.path.exists(path + LOCK_SUFFIX)
        lock = os.open(path + LOCK_SUFFIX, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise to_journal_error(
            f"no place for the journal: {path}: {error.strerror}; "
            "set 'journal' in [DEFAULT] to a file in a directory that this user may write",
            error,
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise JournalError(f"the journal {path} cannot be locked: {error.strerror}") from error
        raise JournalError(
            f"the journal {path} is in use by another process; give each process a journal of its own"
        ) from error
    return lock, known

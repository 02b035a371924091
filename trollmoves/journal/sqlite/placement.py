"""The path of the journal for a daemon that starts: a fallback for unwritable directories, and the name of before."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import sqlite3
import stat
from contextlib import closing, suppress

from trollmoves.errors import JournalError
from trollmoves.journal.location import LOCK_SUFFIX, fallback_directories, journal_name, journal_path
from trollmoves.journal.sqlite.files import connect_read_only, location_of, open_private

logger = logging.getLogger(__name__)

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
_OCTAL = re.compile(r"\\([0-7]{3})")  # an escaped character in mountinfo
NETWORK_TYPES = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs"),
        *("ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.s3fs", "fuse.rclone"),
    }
)


def place_journal(configured: str, config_file: str, role: str) -> str:
    """Return the path of the journal for a daemon that starts.

    Without ``configured`` it is in the first of ``state_directories``, or, if that cannot be written, in the first
    usable one of ``fallback_directories``, with a warning. A journal under the name of earlier versions is renamed;
    raise JournalError if another process uses it.
    """
    path = journal_path(configured, config_file, role)
    if configured:
        return path
    name, old_name = journal_name(config_file, role), journal_name(config_file, role, host="")
    directory = os.path.dirname(path)
    if not any(os.path.exists(os.path.join(directory, one)) for one in (name, old_name)):
        directory = _usable_directory(directory)
    path, old = os.path.join(directory, name), os.path.join(directory, old_name)
    if os.path.exists(old) and not os.path.exists(path):
        _take_over(old, path)
    return path


def network_warning(path: str, mountinfo: str = "/proc/self/mountinfo") -> str:
    """Return a warning if a journal is on a network file system, else an empty string."""
    directory = os.path.realpath(os.path.dirname(path))
    found, longest = "", -1
    with suppress(OSError), open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, system = line.partition(" - ")
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), (fields.split() + [""] * 5)[4])
            if f"{directory}/".startswith(f"{point.rstrip('/')}/") and len(point) >= longest:
                found, longest = f"{system.split()[0]} at {point}", len(point)
    if found.partition(" ")[0] not in NETWORK_TYPES:
        return ""
    return (
        f"the journal {path} is on a network file system ({found}), where locks and shared memory are unreliable: set "
        "'journal' in [DEFAULT] to a file on a local disk"
    )


def _usable_directory(first: str) -> str:
    """Return ``first``, or a fallback if it cannot be written; ``first`` if there is none, for the error about it."""
    reason = _why_unusable(first)
    if not reason:
        return first
    for directory in fallback_directories():
        if not _why_unusable(directory, private=True):
            logger.warning(
                "cannot write the state directory %s (%s): the journal is in %s, which may be removed at a reboot or "
                "with the container, together with its pending files; set 'journal' in [DEFAULT], or "
                "$STATE_DIRECTORY, to a persistent directory",
                first,
                reason,
                directory,
            )
            return directory
    return first


def _why_unusable(directory: str, *, private: bool = False) -> str:
    """Return the reason why a directory cannot be created or written; a ``private`` one must belong to this user."""
    if not os.path.isabs(directory):
        return "this user has no home directory"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        status = os.lstat(directory)
    except OSError as error:
        return os.strerror(error.errno or 0) if error.errno in _UNWRITABLE else ""
    if private and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022):
        return "others may write it"
    return "" if os.access(directory, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def _take_over(old: str, path: str) -> None:
    """Rename a journal, its write-ahead log and its lock file; may be repeated after a kill at any step."""
    try:
        lock = open_private(old + LOCK_SUFFIX) if os.path.exists(old + LOCK_SUFFIX) else None
        try:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_of_this_machine(old):
                return
            for suffix in (LOCK_SUFFIX, "-wal", ""):  # the journal last: it is found without the others
                with suppress(FileNotFoundError):
                    os.rename(old + suffix, path + suffix)
            with suppress(FileNotFoundError):
                os.unlink(old + "-shm")
        finally:
            if lock is not None:
                os.close(lock)
    except BlockingIOError:
        raise JournalError(f"the journal {old} is in use by another process; stop that process first") from None
    except OSError as error:
        raise JournalError(f"cannot rename the journal {old} to {path}: {error.strerror}") from error
    logger.info("renamed the journal %s to %s", old, path)


def _is_of_this_machine(path: str) -> bool:
    """Return False if a journal belongs to another host with the same home directory."""
    with suppress(sqlite3.Error), closing(connect_read_only(path)) as opened:
        row = opened.execute("SELECT value FROM meta WHERE key = 'location'").fetchone()
        return row is None or str(row[0]).split(" ")[0] == location_of(path).split(" ")[0]
    return True

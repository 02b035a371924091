"""The path of the journal for a daemon that starts, and the warning if it is on a network file system."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from contextlib import suppress

from trollmoves.journal.location import fallback_directories, journal_path

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
    usable one of ``fallback_directories``, with a warning.
    """
    path = journal_path(configured, config_file, role)
    if configured or os.path.exists(path):
        return path
    directory, name = os.path.split(path)
    return os.path.join(_usable_directory(directory), name)


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

"""Decides whether a file has been written completely.

A file is complete when no process has it open for writing. ``is_open_for_writing`` asks the kernel; a file that is open
is never complete, however long its writer pauses.

Where the kernel cannot say (the file belongs to another user and this process lacks CAP_LEASE, or the file system has
no leases), the event of a file that was closed or renamed within a watched directory is trusted. A file without such an
event (older than the watch, or a new hard or symbolic link) is complete once its size and times have not changed for a
while.
"""

from __future__ import annotations

import enum
import fcntl
import heapq
import logging
import os
import signal
import time
from dataclasses import dataclass

from trollmoves.errors import OriginChanged

QUIET_SECONDS = 2.0  # unchanged for this long, a file is complete if the kernel cannot say whether it is open
MISSED_CLOSE_SECONDS = 600.0  # minimum for a new file whose close event is expected
WARN_AFTER = 600.0  # s; a file that is open and unchanged for this long is logged: a process may have forgotten it
RECHECK_INTERVAL = 1.0  # s between two checks of a deferred file
FIRST_RECHECK = 0.005  # s; the close event precedes the end of the writing, on some disks by milliseconds
MAX_DEFERRED = 10_000  # files; the directory of any further file is listed again

logger = logging.getLogger(__name__)

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Trigger(enum.Enum):
    """Why a file is checked."""

    CLOSED = enum.auto()  # event: closed after writing
    MOVED = enum.auto()  # event: renamed into the directory
    CREATED = enum.auto()  # event: new name, of a file that is being written or of a link
    LISTED = enum.auto()  # found by listing the directory
    SETTLED = enum.auto()  # unchanged between two listings, one interval apart

    @property
    def fresh(self) -> bool:
        """True if an event reported the file."""
        return self in _FRESH


_TRUSTED = frozenset({Trigger.CLOSED, Trigger.MOVED})
_SUFFICIENT = _TRUSTED | {Trigger.SETTLED}  # where the kernel cannot say whether the file is open
_FRESH = _TRUSTED | {Trigger.CREATED}


def is_open_for_writing(path: str) -> bool | None:
    """Return True if a process of this host has the file open for writing, None if the kernel cannot say."""
    return _try_lease(path)[0]


def check_complete(fd: int, path: str, quiet: float = QUIET_SECONDS) -> None:
    """Raise OriginChanged if an open file may be incomplete: it is open for writing too.

    Where the kernel cannot say, the file may be incomplete until it has not changed for ``quiet`` seconds.
    """
    is_open, _ = _take_lease(fd)
    if is_open is False:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    if is_open is None:
        status = os.fstat(fd)
        is_open = time.time() - max(status.st_mtime, status.st_ctime) < quiet
    if is_open:
        raise OriginChanged(f"{path}: differs from its announcement and may be incomplete, as it is being written")


def _take_lease(fd: int) -> tuple[bool | None, os.stat_result | None]:
    """Return the result of ``is_open_for_writing`` for a read-only descriptor; if it is False, also the file's status.

    The kernel grants a read lease (fcntl(2), F_SETLEASE) only if no process has the file open for writing. If it is
    granted, the caller releases it immediately; a process that opens the file for writing waits for those microseconds.
    """
    try:
        # The kernel would ask for the lease with SIGIO, which ends the process; SIGURG is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        return False, os.fstat(fd)
    except BlockingIOError:
        return True, None
    except OSError:
        return None, None


def _try_lease(path: str) -> tuple[bool | None, os.stat_result | None]:
    """Return the result of ``is_open_for_writing``; if it is False, also the file's status at that moment."""
    try:
        fd = os.open(path, _OPEN)
    except BlockingIOError:
        return True, None  # another process holds a write lease, as a Samba server does for its clients
    except OSError:
        return None, None
    try:
        return _take_lease(fd)
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Deferred:
    trigger: Trigger
    signature: tuple[int, int, int, int]
    unchanged_since: float
    delay: float
    due: float = 0.0
    warned: bool = False


class CompletenessChecker:
    """Decides which files are complete, and owns the deferred files: those to check again. Used by one thread.

    Args:
        limit: Maximum number of deferred files.
        quiet: Seconds without change, see ``QUIET_SECONDS``.
        warn_after: Seconds without change, see ``WARN_AFTER``.
        name: The name of the chain, for the log.
    """

    def __init__(
        self,
        *,
        limit: int = MAX_DEFERRED,
        quiet: float = QUIET_SECONDS,
        warn_after: float = WARN_AFTER,
        name: str = "watch",
    ) -> None:
        self._limit = limit
        self._quiet = quiet
        self._warn_after = warn_after
        self._name = name
        self._deferred: dict[str, _Deferred] = {}
        self._schedule: list[tuple[float, str]] = []  # heap of (due, path); dropped paths stay until they are due
        self._overflowed: set[str] = set()

    def __len__(self) -> int:
        return len(self._deferred)

    def check(self, path: str, stat: os.stat_result, trigger: Trigger) -> os.stat_result | None:
        """Return the status of a complete file; otherwise defer the file and return None."""
        is_open, status = _try_lease(path)
        if status is None and is_open is None and trigger in _SUFFICIENT:
            status = stat
        if status is None and self._quiet_long_enough(path, stat, trigger, is_open):
            status = stat
        if status is not None:
            self.drop(path)
        return status

    def _quiet_long_enough(self, path: str, stat: os.stat_result, trigger: Trigger, is_open: bool | None) -> bool:
        now = time.monotonic()
        signature = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
        entry = self._deferred.pop(path, None)
        if entry is None:
            age = time.time() - max(stat.st_mtime, stat.st_ctime) if trigger is Trigger.LISTED else 0.0
            delay = FIRST_RECHECK if trigger is Trigger.CLOSED else RECHECK_INTERVAL
            entry = _Deferred(trigger, signature, now - max(age, 0.0), delay)
        elif entry.signature != signature:
            entry.signature, entry.unchanged_since = signature, now
        unchanged = now - entry.unchanged_since
        if is_open and unchanged >= self._warn_after and not entry.warned:
            entry.warned = True
            logger.warning(
                "[%s] %s has been open for writing for %.0f s without a change, not announced until it is closed",
                *(self._name, path, unchanged),
            )
        if not is_open and unchanged >= self._required_quiet(stat, entry.trigger):
            return True
        if len(self._deferred) >= self._limit:
            self._overflowed.add(os.path.dirname(path))
        else:
            entry.due = now + entry.delay
            entry.delay = min(2 * entry.delay, RECHECK_INTERVAL)
            self._deferred[path] = entry
            heapq.heappush(self._schedule, (entry.due, path))
        return False

    def overflowed_directories(self) -> set[str]:
        """Return and clear the directories to list again, because files in them exceeded the limit."""
        overflowed, self._overflowed = self._overflowed, set()
        return overflowed

    def drop(self, path: str) -> None:
        """Forget a deferred file: an event reported it, or it is gone."""
        self._deferred.pop(path, None)

    def due(self, limit: int) -> dict[str, Trigger]:
        """Return at most ``limit`` files to check again now."""
        paths: dict[str, Trigger] = {}
        while len(paths) < limit and (due := self.next_due()) is not None and due <= time.monotonic():
            _, path = heapq.heappop(self._schedule)
            paths[path] = self._deferred[path].trigger
        return paths

    def next_due(self) -> float | None:
        """Return when (monotonic) the next file is to be checked again."""
        while self._schedule:
            due, path = self._schedule[0]
            entry = self._deferred.get(path)
            if entry is not None and entry.due == due:
                return due
            heapq.heappop(self._schedule)
        return None

    def _required_quiet(self, stat: os.stat_result, trigger: Trigger) -> float:
        """Return the seconds without change after which a file is complete, if the kernel cannot say.

        A new name is a link if the file has other names, or if its metadata changed after its content (as linking
        does). Without these signs another process is most likely writing it, and will close it with an event.
        """
        if trigger is Trigger.CREATED and stat.st_nlink == 1 and stat.st_ctime_ns <= stat.st_mtime_ns:
            return max(self._quiet, MISSED_CLOSE_SECONDS)
        return self._quiet

"""Judges whether a file is whole.

A file is whole when nobody has it open for writing any more. An event says so when the file was written or renamed
within a watched directory; nothing says so of a file that was there before the watch, nor of one that comes as a hard
or symbolic link. So ``being_written`` is asked, of the former too, since a file may have been opened again between its
event and its turn.

Where nobody knows (the file belongs to another user and this process lacks CAP_LEASE, or the file system knows no
leases), events are believed, and for the rest time has to do: a file is whole when its size and times have not changed
for a while.
"""

from __future__ import annotations

import enum
import fcntl
import heapq
import os
import signal
import time
from dataclasses import dataclass

QUIET_SECONDS = 2.0  # s without change after which a file is whole if nobody can tell whether it is still open
MAX_OPEN_SECONDS = (
    600.0  # s without change after which a file that is still open is told of all the same: somebody forgot it
)
RECHECK_INTERVAL = 1.0  # s between two looks at a file that was put aside
FIRST_RECHECK = (
    0.005  # s; of a close, the event comes first and the end of the writing after, on some disks milliseconds
)
MAX_DEFERRED = 10_000  # files; what comes beyond is found by listing its directory once more

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Trigger(enum.Enum):
    """How a file came to notice."""

    CLOSED = enum.auto()  # an event: somebody wrote it, and closed it
    MOVED = enum.auto()  # an event: renamed to here
    CREATED = enum.auto()  # an event: a new name, either of a file that is being written, or a link to one
    LISTED = enum.auto()  # it stands in a directory that was listed
    SETTLED = enum.auto()  # two listings, one interval apart, showed the same

    @property
    def fresh(self) -> bool:
        """Whether an event told of it."""
        return self in _FRESH


_BELIEVED = frozenset({Trigger.CLOSED, Trigger.MOVED})
_FRESH = _BELIEVED | {Trigger.CREATED}


def is_open_for_writing(path: str) -> bool | None:
    """Say whether any process of this host has the file open for writing; None when the kernel does not tell."""
    return _try_lease(path)[0]


def _try_lease(path: str) -> tuple[bool | None, os.stat_result | None]:
    """Return what ``being_written`` does; if that is False, also the status of the file while that was sure.

    A read lease (fcntl(2), F_SETLEASE) is granted only for files that nobody has open for writing. It is given back
    at once; a process that opens the file for writing in between waits those microseconds.
    """
    try:
        fd = os.open(path, _OPEN)
    except BlockingIOError:
        return True, None  # somebody else holds a lease for writing, as a Samba server does for its clients
    except OSError:
        return None, None
    try:
        # The signal for "please give the lease back" would be SIGIO, which ends the process; SIGURG is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        return False, os.fstat(fd)
    except BlockingIOError:
        return True, None
    except OSError:
        return None, None
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Deferred:
    sighting: Trigger
    stat: tuple[int, int, int, int]
    since: float
    pause: float
    due: float = 0.0


class CompletenessChecker:
    """Says which files are whole, and keeps those that are not until they are.

    Owns the files that were put aside. Used by one thread.
    """

    def __init__(
        self, *, limit: int = MAX_DEFERRED, quiet: float = QUIET_SECONDS, patience: float = MAX_OPEN_SECONDS
    ) -> None:
        self._limit = limit
        self._quiet = quiet
        self._patience = patience
        self._aside: dict[str, _Deferred] = {}
        self._order: list[tuple[float, str]] = []  # a heap of when and what; what is dropped stays in it until then
        self._crowded: set[str] = set()

    def __len__(self) -> int:
        return len(self._aside)

    def check(self, path: str, stat: os.stat_result, sighting: Trigger) -> os.stat_result | None:
        """Return the status that the whole file has, if it may be told of now; otherwise it is put aside."""
        if sighting is Trigger.SETTLED:
            return stat
        state, status = _try_lease(path)
        if status is None and state is None and sighting in _BELIEVED:
            status = stat
        if status is None and self._quiet_long_enough(path, stat, sighting, state):
            status = stat
        if status is not None:
            self.drop(path)
        return status

    def _quiet_long_enough(self, path: str, stat: os.stat_result, sighting: Trigger, state: bool | None) -> bool:
        now = time.monotonic()
        signature = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
        waiting = self._aside.pop(path, None)
        if waiting is None:
            age = time.time() - max(stat.st_mtime, stat.st_ctime) if sighting is Trigger.LISTED else 0.0
            pause = FIRST_RECHECK if sighting is Trigger.CLOSED else RECHECK_INTERVAL
            waiting = _Deferred(sighting, signature, now - max(age, 0.0), pause)
        elif waiting.stat != signature:
            waiting.stat, waiting.since = signature, now
        if now - waiting.since >= self._required_quiet(stat, waiting.sighting, state):
            return True
        if len(self._aside) >= self._limit:
            self._crowded.add(os.path.dirname(path))
        else:
            waiting.due = now + waiting.pause
            waiting.pause = min(2 * waiting.pause, RECHECK_INTERVAL)
            self._aside[path] = waiting
            heapq.heappush(self._order, (waiting.due, path))
        return False

    def overflowed_directories(self) -> set[str]:
        """Give, once, the directories with files that found no room aside: these are to be listed again later."""
        crowded, self._crowded = self._crowded, set()
        return crowded

    def drop(self, path: str) -> None:
        """Forget a file, because an event told of it, or because it is gone."""
        self._aside.pop(path, None)

    def due(self, most: int) -> dict[str, Trigger]:
        """Return the files that should be looked at again now, at most so many."""
        paths: dict[str, Trigger] = {}
        while len(paths) < most and (due := self.next_due()) is not None and due <= time.monotonic():
            _, path = heapq.heappop(self._order)
            paths[path] = self._aside[path].sighting
        return paths

    def next_due(self) -> float | None:
        """Return when (monotonic) the next file should be looked at again."""
        while self._order:
            due, path = self._order[0]
            waiting = self._aside.get(path)
            if waiting is not None and waiting.due == due:
                return due
            heapq.heappop(self._order)
        return None

    def _required_quiet(self, stat: os.stat_result, sighting: Trigger, state: bool | None) -> float:
        """Return how many seconds without change make a file whole.

        A new name whose file has other names, or was changed in something else than its content since it was written
        (as linking does), is a link; without these signs somebody else's process most likely writes it, and will
        close it with an event.
        """
        if sighting in _BELIEVED:
            return self._quiet
        if state:
            return self._patience
        if sighting is Trigger.CREATED and stat.st_nlink == 1 and stat.st_ctime_ns <= stat.st_mtime_ns:
            return self._patience
        return self._quiet

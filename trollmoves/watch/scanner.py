"""Lists directories in small steps."""

from __future__ import annotations

import enum
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator

from trollmoves.watch.completeness import Trigger
from trollmoves.watch.directories import Directory, Snapshot

SORT_WINDOW = 10_000  # names sorted by age together: a few megabytes, however large the directory is
STEP_ENTRIES = 500  # entries read in one step, before the caller can process events

_MISSING = (-1, -1, -1, False)


class Scanner:
    """Queue of the directories to list, and the running listings. Used by one thread.

    New directories are listed before older ones; apart from that, in the order in which they were added.

    Args:
        on_failure: Called with a directory that could not be listed.
        polling: If True, file times are not trusted in directories without a watch: a file is returned as
            ``SETTLED`` when two listings have shown it unchanged.
    """

    def __init__(self, on_failure: Callable[[Directory, OSError], None], *, polling: bool) -> None:
        self._queues = (_ScanQueue(on_failure, polling), _ScanQueue(on_failure, polling))

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def add(self, directory: Directory, *, first: bool = False) -> None:
        """Queue a directory, also if it is being listed now and has a watch."""
        if not any(directory in queue for queue in self._queues):
            self._queues[0 if first else 1].add(directory)

    def step(self) -> dict[str, Trigger]:
        """Return the next paths with their triggers; an empty result does not mean that all listings have ended."""
        for queue in self._queues:
            if len(queue):
                return queue.step()
        return {}

    def clear(self) -> None:
        """Drop all listings, and close the open directories."""
        for queue in self._queues:
            queue.clear()


class _ScanQueue:
    def __init__(self, on_failure: Callable[[Directory, OSError], None], polling: bool) -> None:
        self._on_failure = on_failure
        self._polling = polling
        self._waiting: OrderedDict[Directory, None] = OrderedDict()
        self._running: Directory | None = None
        self._steps: Iterator[list[str]] = iter(())
        self._trigger = Trigger.LISTED

    def __len__(self) -> int:
        return len(self._waiting) + (self._running is not None)

    def __contains__(self, directory: Directory) -> bool:
        # A running listing may have missed new files; without a watch, the directory is listed again anyway.
        return directory in self._waiting or (directory is self._running and directory.wd is None)

    def add(self, directory: Directory) -> None:
        self._waiting[directory] = None

    def step(self) -> dict[str, Trigger]:
        directory = self._running
        if directory is None:
            self._running = directory = self._waiting.popitem(last=False)[0]
            self._begin(directory)
        if not directory.is_tracked:
            self._end()
            return {}
        try:
            return dict.fromkeys(next(self._steps), self._trigger)
        except StopIteration:
            self._end()
        except OSError as error:
            self._end()
            self._on_failure(directory, error)
        return {}

    def _begin(self, directory: Directory) -> None:
        self._trigger = Trigger.LISTED
        if directory.wd is not None:
            self._steps = oldest_first(directory.path, directory.since_ns)
        elif self._polling:
            self._steps, self._trigger = compared(directory, State.SETTLED), Trigger.SETTLED
        else:
            self._steps = compared(directory, State.CHANGED)

    def clear(self) -> None:
        self._waiting.clear()
        self._end()

    def _end(self) -> None:
        self._running, self._steps = None, iter(())


def oldest_first(path: str, since_ns: int = 0, window: int = SORT_WINDOW) -> Iterator[list[str]]:
    """Yield the paths of a directory's files, the oldest first within each window of ``window`` names.

    Hidden files and those with a status change time before ``since_ns`` are skipped. An empty list is only a pause.
    Closing the iterator closes the directory.

    Raises:
        OSError: The directory cannot be listed.
    """
    found: list[tuple[int, str]] = []
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries, 1):
            stat = _file_stat(entry)
            if stat is not None and stat.st_ctime_ns >= since_ns:
                found.append((stat.st_mtime_ns, entry.path))
            if len(found) >= window:
                yield from _sorted_steps(found)
                found = []
            elif number % STEP_ENTRIES == 0:
                yield []
    yield from _sorted_steps(found)


def _sorted_steps(found: list[tuple[int, str]]) -> Iterator[list[str]]:
    found.sort()
    for at in range(0, len(found), STEP_ENTRIES):
        yield [path for _, path in found[at : at + STEP_ENTRIES]]


class State(enum.Enum):
    """A file compared with the last snapshot of its directory."""

    CHANGED = enum.auto()
    SETTLED = enum.auto()  # unchanged for the first time
    REPORTED = enum.auto()


def compared(directory: Directory, wanted: State | None) -> Iterator[list[str]]:
    """Yield the paths of the files in one state; renew the directory's snapshot in the end.

    With None, yield empty lists, and mark all files as reported.

    Raises:
        OSError: The directory cannot be listed.
    """
    before: Snapshot = directory.snapshot or {}
    now: Snapshot = {}
    paths = []
    with os.scandir(directory.path) as entries:
        for number, entry in enumerate(entries, 1):
            stat = _file_stat(entry)
            if stat is not None:
                size, mtime, inode, reported = before.get(entry.name, _MISSING)
                same = (size, mtime, inode) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                if wanted is (State.CHANGED if not same else State.REPORTED if reported else State.SETTLED):
                    paths.append(entry.path)
                now[entry.name] = stat.st_size, stat.st_mtime_ns, stat.st_ino, same or wanted is None
            if number % STEP_ENTRIES == 0:
                yield paths
                paths = []
        yield paths
    directory.snapshot = now


def _file_stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    if entry.name.startswith("."):
        return None
    try:
        return None if entry.is_dir() else entry.stat()
    except OSError:
        return None  # removed in between, or a dangling link

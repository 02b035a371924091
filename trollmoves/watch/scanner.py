"""Lists directories piece by piece."""

from __future__ import annotations

import enum
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator

from trollmoves.watch.completeness import Trigger
from trollmoves.watch.directories import Directory, Snapshot

SORT_WINDOW = 10_000  # names that are sorted by age together: a few megabytes, however large the directory is
STEP_ENTRIES = 500  # entries looked at between two chances for the caller to see to something else

_UNSEEN = (-1, -1, -1, False)


class Scanner:
    """The directories that are to be listed, and the listings that run.

    A directory that has just appeared is listed before those that have been there for long; otherwise it is first come,
    first served. Used by one thread.

    Args:
        failed: Is told of a directory that could not be listed.
        polling: Whether times are not to be trusted where the kernel does not tell of a directory: then files come as
            settled, when two listings have shown the same.
    """

    def __init__(self, failed: Callable[[Directory, OSError], None], *, polling: bool) -> None:
        self._queues = (_ScanQueue(failed, polling), _ScanQueue(failed, polling))

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def add(self, directory: Directory, *, first: bool = False) -> None:
        """List a directory, once more if that is happening already."""
        if not any(directory in queue for queue in self._queues):
            self._queues[0 if first else 1].add(directory)

    def step(self) -> dict[str, Trigger]:
        """Return some paths of files, by how they came to notice; possibly none, though there are more to come."""
        for queue in self._queues:
            if len(queue):
                return queue.step()
        return {}

    def clear(self) -> None:
        """Forget all, and close what is open."""
        for queue in self._queues:
            queue.clear()


class _ScanQueue:
    def __init__(self, failed: Callable[[Directory, OSError], None], polling: bool) -> None:
        self._failed = failed
        self._polling = polling
        self._waiting: OrderedDict[Directory, None] = OrderedDict()
        self._running: Directory | None = None
        self._pieces: Iterator[list[str]] = iter(())
        self._sighting = Trigger.LISTED

    def __len__(self) -> int:
        return len(self._waiting) + (self._running is not None)

    def __contains__(self, directory: Directory) -> bool:
        # One that runs has passed what came meanwhile; but what is listed again and again will be.
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
            return dict.fromkeys(next(self._pieces), self._sighting)
        except StopIteration:
            self._end()
        except OSError as error:
            self._end()
            self._failed(directory, error)
        return {}

    def _begin(self, directory: Directory) -> None:
        self._sighting = Trigger.LISTED
        if directory.wd is not None:
            self._pieces = oldest_first(directory.path, directory.since_ns)
        elif self._polling:
            self._pieces, self._sighting = settled(directory), Trigger.SETTLED
        else:
            self._pieces = changed(directory)

    def clear(self) -> None:
        self._waiting.clear()
        self._end()

    def _end(self) -> None:
        self._running, self._pieces = None, iter(())


def oldest_first(path: str, since_ns: int = 0, window: int = SORT_WINDOW) -> Iterator[list[str]]:
    """Give the paths of the files of a directory: window by window as they are listed, within each the oldest first.

    Hidden names are left out, and files whose status changed before ``since_ns``. An empty list is no end, only a
    pause. Closing the iterator closes the directory.

    Raises:
        OSError: The directory cannot be listed.
    """
    gathered: list[tuple[int, str]] = []
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries, 1):
            stat = _file_stat(entry)
            if stat is not None and stat.st_ctime_ns >= since_ns:
                gathered.append((stat.st_mtime_ns, entry.path))
            if len(gathered) >= window:
                yield from _sorted_pieces(gathered)
                gathered = []
            elif number % STEP_ENTRIES == 0:
                yield []
    yield from _sorted_pieces(gathered)


def _sorted_pieces(gathered: list[tuple[int, str]]) -> Iterator[list[str]]:
    gathered.sort()
    for at in range(0, len(gathered), STEP_ENTRIES):
        yield [path for _, path in gathered[at : at + STEP_ENTRIES]]


def changed(directory: Directory) -> Iterator[list[str]]:
    """Give the paths of the files that are not as the last listing of the directory showed them.

    At its end the directory remembers what it holds now.

    Raises:
        OSError: The directory cannot be listed.
    """
    return _diff(directory, _State.CHANGED)


def settled(directory: Directory) -> Iterator[list[str]]:
    """Give the paths of the files that are as the last listing showed them, each once until it changes.

    At its end the directory remembers what it holds now.

    Raises:
        OSError: The directory cannot be listed.
    """
    return _diff(directory, _State.SETTLED)


def snapshot(directory: Directory) -> Iterator[list[str]]:
    """Give nothing; at its end the directory remembers what it holds now as if it had been told of.

    Raises:
        OSError: The directory cannot be listed.
    """
    return _diff(directory, None)


class _State(enum.Enum):
    """What two listings say of a file."""

    CHANGED = enum.auto()
    SETTLED = enum.auto()
    TOLD = enum.auto()


def _diff(directory: Directory, wanted: _State | None) -> Iterator[list[str]]:
    """Give the files of one state; if none is wanted, all count as told of."""
    before: Snapshot = directory.snapshot or {}
    now: Snapshot = {}
    ready = []
    with os.scandir(directory.path) as entries:
        for number, entry in enumerate(entries, 1):
            stat = _file_stat(entry)
            if stat is not None:
                size, mtime, inode, told = before.get(entry.name, _UNSEEN)
                same = (size, mtime, inode) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                if wanted is (_State.CHANGED if not same else _State.TOLD if told else _State.SETTLED):
                    ready.append(entry.path)
                now[entry.name] = stat.st_size, stat.st_mtime_ns, stat.st_ino, same or wanted is None
            if number % STEP_ENTRIES == 0:
                yield ready
                ready = []
        yield ready
    directory.snapshot = now


def _file_stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    if entry.name.startswith("."):
        return None
    try:
        return None if entry.is_dir() else entry.stat()
    except OSError:
        return None  # gone meanwhile, or a link to nothing

"""Tells of whole files as they appear in directories that come and go.

Two threads: one empties the kernel's queue and does nothing else, the other one looks at the files and calls back.
Between any two steps of a listing the second one sees to all events that wait, so that new files never stand behind
old ones.

Why no file is told of twice without need: what a listing or a link brings to notice is only a candidate. When it has
been looked at, the events that have happened until then are dealt with first; a file that one of these tells of is no
candidate any more. Whatever happens to it later is a later writing.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from operator import attrgetter

from trollmoves.matching.patterns import Origin
from trollmoves.utils.batch_delivery import BatchDelivery
from trollmoves.watch import inotify
from trollmoves.watch.completeness import CompletenessChecker, Trigger
from trollmoves.watch.directories import Directory, DirectoryTree, is_gone
from trollmoves.watch.found_file import FoundFile
from trollmoves.watch.inotify import EventQueue, Inotify, events
from trollmoves.watch.scanner import Scanner, snapshot

AUDIT_INTERVAL = 2.0  # s between two looks for what gives no event (mounts, changed links, directories without a watch)
MIN_POLL_INTERVAL = 0.05  # s between two listings
START_TIMEOUT = 10.0  # s that start() waits at most for the watches to be in place
STOP_TIMEOUT = 10.0  # s that stop() waits at most for a disk that does not answer, or for whoever takes the files
CACHE_SIZE = 50_000  # files told of lately, which a listing does not repeat
CLOCK_STEP_NS = 100_000_000  # the times of files lag behind the clock by at most this

_OF_DIRECTORIES = inotify.ISDIR | inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED

logger = logging.getLogger(__name__)


class DirectoryWatch:
    """Finds the files of one origin.

    A file is told of once for each time that it is written and closed, renamed to its name, or linked there; files
    that were there before come in batches, directory by directory in the order of their names and within each
    directory the oldest first (in windows of 10,000). Hidden files and empty ones are never told of. What is told twice
    is told with the same size, time and inode; after the kernel lost events that may happen, a missing file may not.

    ``found`` is called by one thread, with at most ``batch`` files. When it raises, the same files are offered again
    (see ``Offering``); meanwhile events are kept.

    Args:
        origin: Where files are, and what their names hold.
        found: Takes the files.
        backlog: Whether files that exist at the start are told of.
        polling: Seconds between two listings, to do without the kernel's events; a file is told of when two listings
            in a row show the same size and time.
        name: The chain, for the log and for the names of threads.
        batch: Files in one call, at most.
    """

    def __init__(
        self,
        origin: Origin,
        found: Callable[[list[FoundFile]], None],
        *,
        backlog: bool = True,
        polling: float | None = None,
        name: str = "watch",
        batch: int = 200,
    ) -> None:
        self._origin = origin
        self._backlog = backlog
        self._polling = polling
        self._name = name
        self._batch = batch
        self._every = AUDIT_INTERVAL if polling is None else max(polling, MIN_POLL_INTERVAL)
        self._stopping = threading.Event()
        self._watching = threading.Event()
        self._delivery = BatchDelivery(found, name, describe=attrgetter("path"), stopping=self._stopping)
        self._thread = threading.Thread(target=self._run, name=f"{name}-files", daemon=True)
        self._kernel: Inotify | None = None
        self._queue: EventQueue
        self._directories: DirectoryTree
        # The rest is the thread's own.
        self._judge = CompletenessChecker()
        self._recent = _Recent(CACHE_SIZE)
        self._listings = Scanner(self._cannot_list, polling=polling is not None)
        self._list_later: set[str] = set()
        self._touched: dict[str, Trigger] = {}  # an event says that these are whole
        self._created: dict[str, Trigger] = {}  # an event says that there is such a name
        self._candidates: dict[str, FoundFile] = {}  # found to be whole, unless an event knows better
        self._audit_due = 0.0

    def __repr__(self) -> str:
        return f"<Watch {self._name}: {len(self._listings)} directories to list, {len(self._judge)} files put aside>"

    def start(self) -> None:
        """Begin; when this returns, the directories that exist are being watched.

        A directory that does not answer is waited for no longer than ``START_PATIENCE``.
        """
        if self._stopping.is_set() or self._thread.ident is not None:
            return
        if self._polling is None:
            self._kernel = self._open_kernel()
        self._queue = EventQueue(self._kernel, self._name)
        self._directories = DirectoryTree(self._origin, self._kernel, self._name)
        self._queue.start()
        self._thread.start()
        self._watching.wait(START_TIMEOUT)

    def stop(self) -> None:
        """End all threads and give everything back; returns when a running call of ``found`` has.

        After ``STOP_PATIENCE`` it returns all the same, and so it does from within ``found``: then the rest happens
        when that has returned.
        """
        self._stopping.set()
        if self._thread.ident is None:
            return
        self._queue.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                logger.warning("[%s] still busy with %s, not waiting any longer", self._name, self._origin.root)

    def _open_kernel(self) -> Inotify | None:
        try:
            return Inotify()
        except OSError as error:
            logger.warning(
                "[%s] no inotify instance for %s (%s), raise fs.inotify.max_user_instances or the limit of open files; "
                "it is listed every %g s instead",
                *(self._name, self._origin.root, error, self._every),
            )
            return None

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._work()
                except Exception:
                    # A mistake of ours must not make a chain deaf: what was in hand is found by listing all again.
                    logger.exception("[%s] listing everything again after an unexpected error", self._name)
                    self._stopping.wait(1.0)
                    self._drop_all()
                    self._queue.mark_lost()
        finally:
            self._drop_all()
            self._queue.stop()
            if self._kernel is not None:
                self._kernel.close()

    def _drop_all(self) -> None:
        self._listings.clear()
        self._touched.clear()
        self._created.clear()
        self._candidates.clear()

    def _work(self) -> None:
        if not self._watching.is_set():
            self._initial_scan()
            self._watching.set()
        while not self._stopping.is_set():
            self._handle(*self._queue.take(self._idle_seconds()))
            self._report_candidates(self._sightings())
            if time.monotonic() >= self._audit_due:
                self._audit()

    def _initial_scan(self) -> None:
        since_ns = time.time_ns() - CLOCK_STEP_NS
        for directory in self._directories.rescan():
            if self._backlog:
                self._listings.add(directory)
            else:
                self._directories.skip_present(directory, since_ns)
                if directory.wd is None:
                    self._remember_present(directory)
        self._audit_due = time.monotonic() + self._every
        watched = len(self._directories)
        how = "watching" if self._kernel is not None else f"every {self._every:g} s listing"
        which = f"{watched} directories" if watched else "which is not there yet"
        logger.info("[%s] %s %s (%s)", self._name, how, self._origin.root, which)

    def _remember_present(self, directory: Directory) -> None:
        """List a directory for what nobody wants; on a disk of another host times do not tell that."""
        try:
            for _ in snapshot(directory):
                if self._stopping.is_set():
                    return
        except OSError as error:
            self._cannot_list(directory, error)
            directory.snapshot = {}

    def _idle_seconds(self) -> float:
        """Return how long there is nothing to do without an event."""
        if self._created or len(self._listings):
            return 0.0
        due = self._judge.next_due()
        return (self._audit_due if due is None else min(due, self._audit_due)) - time.monotonic()

    def _handle(self, buffers: list[bytes], lost: bool) -> None:
        """Deal with all these events."""
        if lost:
            self._list_everything()
        for buffer in buffers:
            if self._stopping.is_set():
                return
            for wd, mask, name in events(buffer):
                if mask & _OF_DIRECTORIES:
                    self._list(self._directories.on_event(wd, mask, name))
                elif mask & inotify.OVERFLOW:
                    self._list_everything()
                else:
                    self._on_file_event(wd, mask, name)
            if len(self._touched) >= self._batch:
                self._report_touched()
        self._report_touched()

    def _on_file_event(self, wd: int, mask: int, name: str) -> None:
        """Remember which file an event is about; the last event of a file counts."""
        for directory in self._directories.at(wd):
            if not self._directories.holds_files(directory):
                self._list(self._directories.on_event(wd, mask, name))
            elif not name.startswith("."):
                path = directory.prefix + name
                self._candidates.pop(path, None)
                self._judge.drop(path)
                if mask & inotify.CREATE:
                    self._touched.pop(path, None)
                    self._created[path] = Trigger.CREATED
                else:
                    self._created.pop(path, None)
                    self._touched[path] = Trigger.CLOSED if mask & inotify.CLOSE_WRITE else Trigger.MOVED

    def _report_touched(self) -> None:
        touched, self._touched = self._touched, {}
        self._report(
            [file for path, sighting in touched.items() if (file := self._inspect(path, sighting)) is not None]
        )

    def _sightings(self) -> dict[str, Trigger]:
        """Return the next files of which no event says that they are whole."""
        created, self._created = self._created, {}
        return {**self._listings.step(), **self._judge.due(self._batch), **created}

    def _report_candidates(self, sightings: dict[str, Trigger]) -> None:
        """Tell of these files if they are whole, but of none that an event tells of that has happened until now."""
        for path, sighting in sightings.items():
            file = self._inspect(path, sighting)
            if file is not None and not (sighting is Trigger.LISTED and file in self._recent):
                self._candidates[path] = file
        if self._candidates:
            self._queue.drain()
            self._handle(*self._queue.take(0))
            files = list(self._candidates.values())
            self._candidates.clear()
            self._report(files)

    def _inspect(self, path: str, sighting: Trigger) -> FoundFile | None:
        """Look at a file; return it if it is one to tell of now."""
        fields = self._origin.parse(path)
        if fields is None:
            return None
        try:
            status = os.stat(path)
        except OSError:
            status = None  # gone before its turn, or a link to nothing
        if status is None or not stat.S_ISREG(status.st_mode) or not status.st_size:
            self._judge.drop(path)  # an empty one will be closed when there is something in it
            return None
        whole = self._judge.check(path, status, sighting)
        if whole is None or not whole.st_size:
            return None
        return FoundFile(path, fields, whole.st_size, whole.st_mtime_ns, whole.st_ino, sighting.fresh)

    def _report(self, files: list[FoundFile]) -> None:
        for at in range(0, len(files), self._batch):
            for file in self._delivery.deliver(files[at : at + self._batch]):
                self._recent.add(file)

    def _list(self, directories: Iterable[Directory]) -> None:
        for directory in directories:
            self._listings.add(directory, first=directory.wd is not None)

    def _list_everything(self) -> None:
        logger.warning("[%s] events were lost, listing %s again", self._name, self._origin.root)
        for directory in self._directories.rescan(again=True):
            self._listings.add(directory)

    def _cannot_list(self, directory: Directory, error: OSError) -> None:
        if is_gone(error):
            return
        self._directories.report_failure(directory.path, error)
        self._list_later.add(directory.path)

    def _audit(self) -> None:
        """Look for what gives no event, and list what could not be listed before."""
        self._list(self._directories.rescan())
        for path in self._list_later | self._judge.overflowed_directories():
            directory = self._directories.get(path)
            if directory is not None:
                self._listings.add(directory)
        self._list_later.clear()
        self._audit_due = time.monotonic() + self._every


class _Recent:
    """Remembers the last files told of, at least ``most`` of them and less than twice as many, by a number each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._new: set[int] = set()
        self._old: set[int] = set()

    def __contains__(self, file: FoundFile) -> bool:
        key = self._key(file)
        return key in self._new or key in self._old

    def add(self, file: FoundFile) -> None:
        self._new.add(self._key(file))
        if len(self._new) >= self._most:
            self._old, self._new = self._new, set()

    @staticmethod
    def _key(file: FoundFile) -> int:
        return hash((file.path, file.size, file.mtime_ns, file.inode))

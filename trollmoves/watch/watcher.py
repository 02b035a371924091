"""Reports new files once they are complete, in directories that may appear and disappear.

One thread only empties the kernel's queue; a second one inspects the files and calls back. Between two steps of a
listing the second thread processes all pending events, so that new files do not wait for old ones.

Files are not reported twice without need: a file found by a listing, or created as a link, is only a candidate. After
its inspection all pending events are processed first, and an event of the file removes it from the candidates. Any
later event means that the file was written again.
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
from trollmoves.utils.batch_delivery import BatchDelivery, SetAside
from trollmoves.watch import inotify
from trollmoves.watch.completeness import QUIET_SECONDS, CompletenessChecker, Trigger
from trollmoves.watch.directories import Directory, DirectoryTree, is_gone
from trollmoves.watch.found_file import FoundFile
from trollmoves.watch.inotify import EventQueue, Inotify, events
from trollmoves.watch.scanner import Scanner, compared

AUDIT_INTERVAL = 2.0  # s between two checks for changes without events (mounts, links, directories without watch)
MIN_POLL_INTERVAL = 0.05  # s between two listings
START_TIMEOUT = 10.0  # s that start() waits for the watches
STOP_TIMEOUT = 10.0  # s that stop() waits for a disk that does not respond, or for the callback
CACHE_SIZE = 50_000  # recently reported files, which a listing does not repeat
CLOCK_STEP_NS = 100_000_000  # maximum lag of file times behind the clock

_OF_DIRECTORIES = inotify.ISDIR | inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED

logger = logging.getLogger(__name__)


class DirectoryWatch:
    """Reports the new files of one origin.

    A file is reported each time it is written and closed, renamed to its name, or linked there. Hidden files are not
    reported, and empty ones only on request. Existing files are reported by directory, in the order of the directory
    names, and within each directory the oldest first (in windows of 10,000). If the kernel loses events, files may be
    reported again, with the same size, time and inode, but no file is missed.

    ``on_found`` is called by one thread. If it raises, the files are passed again (see ``BatchDelivery``), and events
    are queued until then.

    Args:
        origin: The pattern of the files' paths.
        on_found: Called with new files.
        backlog: If True, files that exist at the start are reported.
        polling: Seconds between two listings, instead of using the kernel's events; a file is reported when two
            successive listings show the same size and time.
        quiet: Seconds without change after which a file is complete where the kernel cannot say whether it is open for
            writing.
        name: The name of the chain, for the log and the names of threads.
        empty: If True, empty files are reported too.
        batch_size: Maximum number of files in one call.
        set_aside: Called with the path of a file for which ``on_found`` keeps failing, and the reason.
    """

    def __init__(
        self,
        origin: Origin,
        on_found: Callable[[list[FoundFile]], None],
        *,
        backlog: bool = True,
        polling: float | None = None,
        quiet: float = QUIET_SECONDS,
        name: str = "watch",
        empty: bool = False,
        batch_size: int = 200,
        set_aside: SetAside | None = None,
    ) -> None:
        self._origin = origin
        self._backlog = backlog
        self._polling = polling
        self._name = name
        self._min_size = 0 if empty else 1  # bytes
        self._batch_size = batch_size
        self._interval = AUDIT_INTERVAL if polling is None else max(polling, MIN_POLL_INTERVAL)
        self._stopping = threading.Event()
        self._watching = threading.Event()
        self._delivery = BatchDelivery(
            on_found,
            name,
            source=origin.text,
            describe=attrgetter("path"),
            stopping=self._stopping,
            set_aside=set_aside,
        )
        self._thread = threading.Thread(target=self._run, name=f"{name}-files", daemon=True)
        self._inotify: Inotify | None = None
        self._queue: EventQueue
        self._directories: DirectoryTree
        # The rest belongs to self._thread.
        self._checker = CompletenessChecker(quiet=quiet, name=name)
        self._recent = _Recent(CACHE_SIZE)
        self._scanner = Scanner(self._on_list_failure, polling=polling is not None)
        self._retry_listing: set[str] = set()
        self._touched: dict[str, Trigger] = {}  # complete, according to an event
        self._created: dict[str, Trigger] = {}  # new names, according to an event
        self._candidates: dict[str, FoundFile] = {}  # complete, unless a pending event shows otherwise
        self._audit_due = 0.0

    def __repr__(self) -> str:
        pending = f"to list: {len(self._scanner)}, deferred files: {len(self._checker)}"
        return f"<DirectoryWatch {self._name}: {pending}>"

    def start(self) -> None:
        """Start; on return the existing directories are watched, unless that takes longer than ``START_TIMEOUT``."""
        if self._stopping.is_set() or self._thread.ident is not None:
            return
        if self._polling is None:
            self._inotify = self._open_inotify()
        self._queue = EventQueue(self._inotify, self._name)
        self._directories = DirectoryTree(self._origin, self._inotify, self._name)
        self._queue.start()
        self._thread.start()
        self._watching.wait(START_TIMEOUT)

    def stop(self) -> None:
        """Stop all threads and release all resources.

        Waits at most ``STOP_TIMEOUT`` for a running call of ``on_found``; called from within it, does not wait. In
        both cases the threads end after that call.
        """
        self._stopping.set()
        if self._thread.ident is None:
            return
        self._queue.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT)
            if self._thread.is_alive():
                logger.warning(
                    "[%s] the watch of %s is still busy after %g s, not waiting any longer",
                    *(self._name, self._origin.root, STOP_TIMEOUT),
                )

    def _open_inotify(self) -> Inotify | None:
        try:
            return Inotify()
        except OSError as error:
            logger.warning(
                "[%s] no inotify instance for %s (%s), raise fs.inotify.max_user_instances or the limit of open files; "
                "listing it every %g s instead",
                *(self._name, self._origin.root, error, self._interval),
            )
            return None

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._work()
                except Exception:
                    # A bug must not stop the chain: listing everything again finds the dropped files.
                    logger.exception("[%s] listing everything again after an unexpected error", self._name)
                    self._stopping.wait(1.0)
                    self._drop_all()
                    self._queue.mark_lost()
        finally:
            self._drop_all()
            self._queue.stop()
            if self._inotify is not None:
                self._inotify.close()

    def _drop_all(self) -> None:
        self._scanner.clear()
        self._touched.clear()
        self._created.clear()
        self._candidates.clear()

    def _work(self) -> None:
        if not self._watching.is_set():
            self._initial_scan()
            self._watching.set()
        while not self._stopping.is_set():
            self._handle(*self._queue.take(self._idle_seconds()))
            self._report_candidates(self._next_triggers())
            if time.monotonic() >= self._audit_due:
                self._audit()

    def _initial_scan(self) -> None:
        since_ns = time.time_ns() - CLOCK_STEP_NS
        for directory in self._directories.rescan():
            if self._backlog:
                self._scanner.add(directory)
            else:
                self._directories.skip_present(directory, since_ns)
                if directory.wd is None:
                    self._skip_present(directory)
        self._audit_due = time.monotonic() + self._interval
        watched = len(self._directories)
        how = "watching" if self._inotify is not None else f"listing every {self._interval:g} s"
        which = "missing" if not watched else "1 directory" if watched == 1 else f"{watched} directories"
        logger.info("[%s] %s %s (%s)", self._name, how, self._origin.root, which)

    def _skip_present(self, directory: Directory) -> None:
        """List a directory to skip its present files; on another host's disk, times cannot identify them."""
        try:
            for _ in compared(directory, None):
                if self._stopping.is_set():
                    return
        except OSError as error:
            self._on_list_failure(directory, error)
            directory.snapshot = {}

    def _idle_seconds(self) -> float:
        """Return the seconds until work is due without an event."""
        if self._created or len(self._scanner):
            return 0.0
        due = self._checker.next_due()
        return (self._audit_due if due is None else min(due, self._audit_due)) - time.monotonic()

    def _handle(self, buffers: list[bytes], lost: bool) -> None:
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
            if len(self._touched) >= self._batch_size:
                self._report_touched()
        self._report_touched()

    def _on_file_event(self, wd: int, mask: int, name: str) -> None:
        """Record the file of an event; the last event of a file counts."""
        for directory in self._directories.at(wd):
            if not self._directories.holds_files(directory):
                self._list(self._directories.on_event(wd, mask, name))
            elif not name.startswith("."):
                path = directory.prefix + name
                self._candidates.pop(path, None)
                self._checker.drop(path)
                if mask & inotify.CREATE:
                    self._touched.pop(path, None)
                    self._created[path] = Trigger.CREATED
                else:
                    self._created.pop(path, None)
                    self._touched[path] = Trigger.CLOSED if mask & inotify.CLOSE_WRITE else Trigger.MOVED

    def _report_touched(self) -> None:
        touched, self._touched = self._touched, {}
        self._report([file for path, trigger in touched.items() if (file := self._inspect(path, trigger)) is not None])

    def _next_triggers(self) -> dict[str, Trigger]:
        """Return the next files to inspect that no event has shown to be complete."""
        created, self._created = self._created, {}
        return {**self._scanner.step(), **self._checker.due(self._batch_size), **created}

    def _report_candidates(self, triggers: dict[str, Trigger]) -> None:
        """Report the complete files among these, except those with a pending event."""
        for path, trigger in triggers.items():
            file = self._inspect(path, trigger)
            if file is not None and not (trigger is Trigger.LISTED and file in self._recent):
                self._candidates[path] = file
        if self._candidates:
            self._queue.drain()
            self._handle(*self._queue.take(0))
            files = list(self._candidates.values())
            self._candidates.clear()
            self._report(files)

    def _inspect(self, path: str, trigger: Trigger) -> FoundFile | None:
        """Return the file if it is to be reported now."""
        fields = self._origin.parse(path)
        if fields is None:
            return None
        try:
            status = os.stat(path)
        except OSError:
            status = None  # removed in between, or a dangling link
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size < self._min_size:
            self._checker.drop(path)  # an empty file will have another event once it has content
            return None
        complete = self._checker.check(path, status, trigger)
        if complete is None or complete.st_size < self._min_size:
            return None
        return FoundFile(path, fields, complete.st_size, complete.st_mtime_ns, complete.st_ino, trigger.fresh)

    def _report(self, files: list[FoundFile]) -> None:
        for at in range(0, len(files), self._batch_size):
            for file in self._delivery.deliver(files[at : at + self._batch_size]):
                self._recent.add(file)

    def _list(self, directories: Iterable[Directory]) -> None:
        for directory in directories:
            self._scanner.add(directory, first=directory.wd is not None)

    def _list_everything(self) -> None:
        logger.warning("[%s] inotify events were lost, listing %s again", self._name, self._origin.root)
        for directory in self._directories.rescan(again=True):
            self._scanner.add(directory)

    def _on_list_failure(self, directory: Directory, error: OSError) -> None:
        if is_gone(error):
            return
        self._directories.report_failure(directory.path, error)
        self._retry_listing.add(directory.path)

    def _audit(self) -> None:
        """Find changes without events, and retry failed listings."""
        self._list(self._directories.rescan())
        for path in self._retry_listing | self._checker.overflowed_directories():
            directory = self._directories.get(path)
            if directory is not None:
                self._scanner.add(directory)
        self._retry_listing.clear()
        self._audit_due = time.monotonic() + self._interval


class _Recent:
    """Hashes of the last reported files: at least ``limit`` of them, and fewer than twice that number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._new: set[int] = set()
        self._old: set[int] = set()

    def __contains__(self, file: FoundFile) -> bool:
        key = self._key(file)
        return key in self._new or key in self._old

    def add(self, file: FoundFile) -> None:
        self._new.add(self._key(file))
        if len(self._new) >= self._limit:
            self._old, self._new = self._new, set()

    @staticmethod
    def _key(file: FoundFile) -> int:
        return hash((file.path, file.size, file.mtime_ns, file.inode))

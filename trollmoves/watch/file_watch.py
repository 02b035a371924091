"""Tells when one file was changed."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from trollmoves.watch import inotify
from trollmoves.watch.completeness import is_open_for_writing
from trollmoves.watch.inotify import Inotify, events

DEBOUNCE_SECONDS = 0.2  # s without further change, before it is told of
POLL_INTERVAL = 2.0  # s between two looks for what gives no event (a link that leads elsewhere, a disk of another host)
STOP_TIMEOUT = 10.0  # s that stop() waits at most
WRITER_TIMEOUT = 10.0  # s without change after which a file that is still open is taken as it is

_MASK = inotify.CLOSE_WRITE | inotify.MOVED_TO | inotify.CREATE | inotify.ONLYDIR

Signature = tuple[int, int, int]

logger = logging.getLogger(__name__)


class FileWatch:
    """Follows one file, such as the configuration of a daemon.

    ``changed`` is called, by a thread of this object, once things have been quiet for a moment after the file was
    written in place, replaced by rename or led elsewhere as a symbolic link. A file that is missing is no change; it
    is one when it comes back different. An exception of ``changed`` is logged.
    """

    def __init__(self, path: str, changed: Callable[[], None], *, name: str = "file") -> None:
        self._path = os.path.abspath(path)
        self._changed = changed
        self._name = name
        self._thread = threading.Thread(target=self._run, name=f"{name}-watch", daemon=True)
        self._wake = -1
        self._closing = threading.Lock()
        self._stopping = False
        self._known: Signature | None = None

    def start(self) -> None:
        """Begin; what happens after this returns is noticed."""
        if self._stopping or self._thread.ident is not None:
            return
        self._known = _signature(self._path)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._kernel = self._open_kernel()
        self._watch_directories()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give everything back.

        Waits for a running call of ``changed``, but not from within it, and not longer than ``STOP_PATIENCE``.
        """
        with self._closing:
            self._stopping = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        if self._thread.ident is None:
            return
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT)

    def _open_kernel(self) -> Inotify | None:
        try:
            return Inotify()
        except OSError as error:
            logger.warning(
                "[%s] no inotify instance for %s (%s); it is looked at every %g s instead",
                *(self._name, self._path, error, POLL_INTERVAL),
            )
            return None

    def _watch_directories(self) -> None:
        """Watch where the name stands, and where the file does; where that fails, looking now and then has to do."""
        if self._kernel is None:
            return
        for path in {self._path, os.path.realpath(self._path)}:
            try:
                self._kernel.add(os.path.dirname(path), _MASK)
            except OSError as error:
                logger.debug("[%s] cannot watch the directory of %s: %s", self._name, path, error)

    def _run(self) -> None:
        try:
            while not self._stopping:
                written = self._wait(POLL_INTERVAL)
                if written or _signature(self._path) != self._known:
                    self._settle(written)
                self._watch_directories()
        finally:
            with self._closing:
                os.close(self._wake)
                self._wake = -1
            if self._kernel is not None:
                self._kernel.close()

    def _wait(self, seconds: float) -> int:
        """Return the mask of the events that named the file within some seconds; comes back with the first ones."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._kernel is not None:
            poll.register(self._kernel.fd, select.POLLIN)
        deadline = time.monotonic() + seconds
        mask = 0
        while not (mask or self._stopping) and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            mask = self._events_of_file()
        return mask

    def _events_of_file(self) -> int:
        together = 0
        names = {os.path.basename(self._path), os.path.basename(os.path.realpath(self._path))}
        for buffer in self._kernel.read() if self._kernel is not None else ():
            for _, mask, name in events(buffer):
                if name in names:
                    together |= mask
        return together

    def _settle(self, mask: int) -> None:
        """Call back when the file is there, changed, whole and quiet."""
        signature, since = _signature(self._path), time.monotonic()
        while not self._stopping:
            more = self._wait(DEBOUNCE_SECONDS)
            mask |= more
            now = _signature(self._path)
            if now != signature:
                signature, since = now, time.monotonic()
            elif now is None:
                return  # missing: it will be seen when it comes back
            elif not more and (not is_open_for_writing(self._path) or time.monotonic() - since > WRITER_TIMEOUT):
                break
        # Two writings within one tick of the disk's clock look the same, so one that was seen counts as it is.
        if not self._stopping and (signature != self._known or mask & inotify.CLOSE_WRITE):
            self._known = signature
            self._call()

    def _call(self) -> None:
        try:
            self._changed()
        except Exception:
            logger.exception("[%s] cannot take up the change of %s", self._name, self._path)


def _signature(path: str) -> Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino

"""Calls back when one file has changed."""

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

DEBOUNCE_SECONDS = 0.2  # without further change, before the callback
POLL_INTERVAL = 2.0  # s between two checks for changes without an event (a retargeted link, another host's disk)
STOP_TIMEOUT = 10.0  # s
WRITER_TIMEOUT = 10.0  # s without change after which a file that is still open counts as written

_MASK = inotify.CLOSE_WRITE | inotify.MOVED_TO | inotify.CREATE | inotify.ONLYDIR

Signature = tuple[int, int, int]

logger = logging.getLogger(__name__)


class FileWatch:
    """Watches one file, such as the configuration of a daemon.

    ``on_change`` is called, by a thread of this object, ``DEBOUNCE_SECONDS`` after the file was written in place,
    replaced by a rename, or its symbolic link was retargeted. Removing the file does not count as a change; its
    return with another size, time or inode does. An exception of ``on_change`` is logged.
    """

    def __init__(self, path: str, on_change: Callable[[], None], *, name: str = "file") -> None:
        self._path = os.path.abspath(path)
        self._on_change = on_change
        self._name = name
        self._thread = threading.Thread(target=self._run, name=f"{name}-watch", daemon=True)
        self._wake = -1
        self._closing = threading.Lock()
        self._stopping = False
        self._known: Signature | None = None

    def start(self) -> None:
        """Start watching; every change after this call returns is detected."""
        if self._stopping or self._thread.ident is not None:
            return
        self._known = _signature(self._path)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._inotify = self._open_inotify()
        self._watch_directories()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and release all resources.

        Waits at most ``STOP_TIMEOUT`` for a running call of ``on_change``; called from within it, does not wait.
        """
        with self._closing:
            self._stopping = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT)

    def _open_inotify(self) -> Inotify | None:
        try:
            return Inotify()
        except OSError as error:
            logger.warning(
                "[%s] no inotify instance for %s (%s), checking it every %g s instead",
                *(self._name, self._path, error, POLL_INTERVAL),
            )
            return None

    def _watch_directories(self) -> None:
        """Watch the directory of the path and that of the link target; where that fails, polling has to suffice."""
        if self._inotify is None:
            return
        for path in {self._path, os.path.realpath(self._path)}:
            try:
                self._inotify.add(os.path.dirname(path), _MASK)
            except OSError as error:
                logger.debug("[%s] cannot watch the directory of %s: %s", self._name, path, error)

    def _run(self) -> None:
        try:
            while not self._stopping:
                mask = self._wait(POLL_INTERVAL)
                if mask or _signature(self._path) != self._known:
                    self._settle(mask)
                self._watch_directories()
        finally:
            with self._closing:
                os.close(self._wake)
                self._wake = -1
            if self._inotify is not None:
                self._inotify.close()

    def _wait(self, seconds: float) -> int:
        """Wait for events of the file, at most some seconds; return their combined mask."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._inotify is not None:
            poll.register(self._inotify.fd, select.POLLIN)
        deadline = time.monotonic() + seconds
        mask = 0
        while not (mask or self._stopping) and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            mask = self._read_events()
        return mask

    def _read_events(self) -> int:
        combined = 0
        names = {os.path.basename(self._path), os.path.basename(os.path.realpath(self._path))}
        for buffer in self._inotify.read() if self._inotify is not None else ():
            for _, mask, name in events(buffer):
                if name in names:
                    combined |= mask
        return combined

    def _settle(self, mask: int) -> None:
        """Wait until the file is complete and quiet, then call back if it has changed."""
        signature, since = _signature(self._path), time.monotonic()
        while not self._stopping:
            more = self._wait(DEBOUNCE_SECONDS)
            mask |= more
            now = _signature(self._path)
            if now != signature:
                signature, since = now, time.monotonic()
            elif now is None:
                return  # missing: its return will be detected
            elif not more and (not is_open_for_writing(self._path) or time.monotonic() - since > WRITER_TIMEOUT):
                break
        # Two writes within one tick of the disk's clock have the same signature, so a write event always counts.
        if not self._stopping and (signature != self._known or mask & inotify.CLOSE_WRITE):
            self._known = signature
            self._call()

    def _call(self) -> None:
        try:
            self._on_change()
        except Exception:
            logger.exception("[%s] cannot apply the change of %s", self._name, self._path)


def _signature(path: str) -> Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino

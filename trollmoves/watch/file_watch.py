"""Calls back when one file has changed."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from trollmoves.watch.completeness import is_open_for_writing

DEBOUNCE_SECONDS = 0.2  # without further change, before the callback
POLL_INTERVAL = 0.5  # s between two checks
STOP_TIMEOUT = 10.0  # s
WRITER_TIMEOUT = 10.0  # s without change after which a file that is still open counts as written

Signature = tuple[int, int, int]

logger = logging.getLogger(__name__)


class FileWatch:
    """Watches one file, such as the configuration of a daemon.

    ``on_change`` is called, by a thread of this object, after the file was written in place, replaced by a rename, or
    its symbolic link was retargeted: ``DEBOUNCE_SECONDS`` after ``POLL_INTERVAL`` at most. Removing the file does not
    count as a change; its return with another size, time or inode does. An exception of ``on_change`` is logged.

    It polls: events of the kernel miss the changes of links, of mounts and of other hosts, and polling is needed for
    these anyway.
    """

    def __init__(self, path: str, on_change: Callable[[], None]) -> None:
        self._path = os.path.abspath(path)
        self._on_change = on_change
        self._thread = threading.Thread(target=self._run, name="file-watch", daemon=True)
        self._stopping = threading.Event()
        self._known: Signature | None = None

    def start(self) -> None:
        """Start watching; every change after this call returns is detected."""
        if self._stopping.is_set() or self._thread.ident is not None:
            return
        self._known = _signature(self._path)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread.

        Waits at most ``STOP_TIMEOUT`` for a running call of ``on_change``; called from within it, does not wait.
        """
        self._stopping.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_INTERVAL):
            if _signature(self._path) != self._known:
                self._settle()

    def _settle(self) -> None:
        """Wait until the file is complete and quiet, then call back if it has changed."""
        signature, since = _signature(self._path), time.monotonic()
        while signature and not self._stopping.wait(DEBOUNCE_SECONDS):  # the return of a missing one will be detected
            now = _signature(self._path)
            if now != signature:
                signature, since = now, time.monotonic()
            elif not is_open_for_writing(self._path) or time.monotonic() - since > WRITER_TIMEOUT:
                if signature != self._known:
                    self._known = signature
                    self._call()
                return

    def _call(self) -> None:
        try:
            self._on_change()
        except Exception:
            logger.exception("cannot apply the change of %s", self._path)


def _signature(path: str) -> Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino

"""Reads the kernel's queue of file events in bulk.

The only user of pyinotify, for its watches and its constants. Its Notifier is not used: it creates an object for each
event, which is ten times slower than reading the queue in large buffers, and it fails on names that are not UTF-8.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import logging
import os
import select
import struct
import sys
import termios
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress

with warnings.catch_warnings():
    # On Python 3.11 pyinotify imports the deprecated asyncore; an operator cannot act on that warning.
    warnings.filterwarnings("ignore", "The asyncore module is deprecated", DeprecationWarning)
    import pyinotify

CLOSE_WRITE: int = pyinotify.IN_CLOSE_WRITE
MOVED_TO: int = pyinotify.IN_MOVED_TO
CREATE: int = pyinotify.IN_CREATE
DELETE_SELF: int = pyinotify.IN_DELETE_SELF
MOVE_SELF: int = pyinotify.IN_MOVE_SELF
UNMOUNT: int = pyinotify.IN_UNMOUNT
OVERFLOW: int = pyinotify.IN_Q_OVERFLOW
IGNORED: int = pyinotify.IN_IGNORED
ONLYDIR: int = pyinotify.IN_ONLYDIR
ISDIR: int = pyinotify.IN_ISDIR

READ_BYTES = 1 << 16  # more than a thousand events of common length
MAX_QUEUED_BYTES = 16 << 20  # some 300,000 events; for more, listing the directories again is cheaper
READ_RETRY_DELAY = 1.0  # s after a read error (no memory)

_HEADER = struct.Struct("iIII")
_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()

logger = logging.getLogger(__name__)


class Inotify:
    """One inotify instance.

    One thread adds and removes watches; another thread may call ``read``.

    Raises:
        OSError: The limit of inotify instances or of open files is reached.
    """

    def __init__(self) -> None:
        self._manager = pyinotify.WatchManager()
        self.fd: int = self._manager.get_fd()
        os.set_inheritable(self.fd, False)
        os.set_blocking(self.fd, False)

    def add(self, directory: str, mask: int) -> int:
        """Watch a directory; a second call for the same one replaces its mask and returns the same descriptor.

        Raises:
            OSError: With an ``errno`` of inotify_add_watch(2).
        """
        try:
            directory.encode(_ENCODING)
        except UnicodeEncodeError:
            # pyinotify encodes strictly: other names are reached through a descriptor.
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return self._add(f"/proc/self/fd/{fd}", mask)
            finally:
                os.close(fd)
        return self._add(directory, mask)

    def _add(self, path: str, mask: int) -> int:
        try:
            (wd,) = self._manager.add_watch(path, mask, quiet=False).values()
        except pyinotify.WatchManagerError:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path) from None
        return int(wd)

    def remove(self, wd: int) -> None:
        """Remove a watch; a watch that the kernel has already removed is accepted."""
        try:
            self._manager.rm_watch(wd, quiet=False)
        except pyinotify.WatchManagerError:
            self.forget(wd)

    def forget(self, wd: int) -> None:
        """Forget a watch that the kernel has removed."""
        if self._manager.get_watch(wd) is not None:
            self._manager.del_watch(wd)

    def read(self) -> list[bytes]:
        """Return the content of the kernel's queue as raw buffers; does not block."""
        size = array.array("i", [0])
        fcntl.ioctl(self.fd, termios.FIONREAD, size)
        remaining = size[0]
        buffers = []
        while remaining > 0:
            try:
                buffer = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                break
            buffers.append(buffer)
            remaining -= len(buffer)
        return buffers

    def close(self) -> None:
        """Close the instance; this removes all its watches."""
        self._manager.close()


def events(buffer: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield (watch descriptor, mask, name) for each event in a raw buffer; names are decoded as by ``os.fsdecode``."""
    unpack, header = _HEADER.unpack_from, _HEADER.size
    at, end = 0, len(buffer)
    while at < end:
        wd, mask, _, length = unpack(buffer, at)
        at += header
        yield wd, mask, buffer[at : at + length].rstrip(b"\0").decode(_ENCODING, _ERRORS)
        at += length


class EventQueue:
    """Bounded queue of events.

    One thread calls ``take`` and ``drain``. While it waits in ``take``, it reads the kernel's queue itself: an event
    then needs no switch of threads. While it works, a dedicated thread moves the events from the kernel into this
    queue. Without an inotify instance, ``take`` only waits.
    """

    def __init__(self, instance: Inotify | None, name: str, limit: int = MAX_QUEUED_BYTES) -> None:
        self._inotify = instance
        self._limit = limit
        self._lock = threading.Lock()
        self._buffers: list[bytes] = []
        self._bytes = 0
        self._lost = False
        self._stopped = False
        self._is_waiting = False  # the caller of ``take``
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # ends this wait
        self._end = os.eventfd(0, os.EFD_CLOEXEC)  # ends the thread
        self._taking, self._moving = select.epoll(), select.epoll()
        self._taking.register(self._wake, select.EPOLLIN)
        self._moving.register(self._end, select.EPOLLIN)
        self._thread: threading.Thread | None = None
        if instance is not None:
            # For an event the kernel wakes one thread that waits; if both do, the one that was registered first.
            self._taking.register(instance.fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._moving.register(instance.fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._thread = threading.Thread(target=self._run, args=(instance,), name=f"{name}-events", daemon=True)

    def start(self) -> None:
        """Start the reading thread."""
        if self._thread is not None:
            self._thread.start()

    def take(self, timeout: float) -> tuple[list[bytes], bool]:
        """Remove and return the queued raw buffers, and whether earlier events were lost.

        Waits for events at most ``timeout`` seconds, or until the queue is stopped; may then return no buffers.
        """
        if timeout > 0:
            self._wait(timeout)
        with self._lock:
            result = self._buffers, self._lost
            self._buffers, self._bytes, self._lost = [], 0, False
            return result

    def _wait(self, timeout: float) -> None:
        with self._lock:
            if self._buffers or self._lost or self._stopped:
                return
            self._is_waiting = True
        ready = self._taking.poll(timeout)
        with self._lock:
            self._is_waiting = False
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        if ready:
            self.drain()

    def drain(self) -> None:
        """Move all events from the kernel into this queue now."""
        if self._inotify is not None:
            self._fetch(self._inotify)

    def mark_lost(self) -> None:
        """Make the next ``take`` report lost events."""
        with self._lock:
            self._lost = True
            self._end_wait()

    def wake(self) -> None:
        """Stop ``take`` from waiting, permanently. Any thread may call this."""
        with self._lock:
            self._stopped = True
            self._end_wait()

    def _end_wait(self) -> None:
        """End the wait of the caller of ``take``, if it waits. Called under the lock."""
        if self._is_waiting:
            os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Stop the reading thread; called once, by the thread that calls ``take``."""
        self.wake()
        if self._thread is not None:
            os.eventfd_write(self._end, 1)
            self._thread.join()
        for one in (self._taking, self._moving):
            one.close()
        for descriptor in (self._wake, self._end):
            os.close(descriptor)

    def _run(self, instance: Inotify) -> None:
        while not self._stopped:
            self._moving.poll()
            try:
                self._fetch(instance)
            except OSError:
                logger.exception("cannot read file events, trying again in %g s", READ_RETRY_DELAY)
                self.mark_lost()
                time.sleep(READ_RETRY_DELAY)

    def _fetch(self, instance: Inotify) -> None:
        with self._lock:
            buffers = instance.read()
            if not buffers:
                return
            self._bytes += sum(map(len, buffers))
            if self._bytes > self._limit:
                self._buffers, self._bytes, self._lost = [], 0, True
            else:
                self._buffers += buffers
            self._end_wait()

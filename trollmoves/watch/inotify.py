"""Reads the kernel's queue of file events in bulk.

The only user of pyinotify, for its watches and its constants. Its Notifier is not used: that makes an object of every
event, which costs ten times what reading the queue in large pieces does, and stops at a name that is not UTF-8.
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

with warnings.catch_warnings():
    # On Python 3.11 pyinotify imports asyncore from the standard library; nobody who runs a daemon can act on that.
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
MAX_QUEUED_BYTES = (
    16 << 20
)  # some 300,000 events; beyond that listing the directories again is cheaper than remembering
READ_RETRY_DELAY = 1.0  # s before another try when reading fails (no memory)

_HEADER = struct.Struct("iIII")
_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()

logger = logging.getLogger(__name__)


class Inotify:
    """One inotify instance.

    One thread adds and removes watches; ``read`` may be called by another one.

    Raises:
        OSError: No instance is to be had (too many of them, or of open files).
    """

    def __init__(self) -> None:
        self._manager = pyinotify.WatchManager()
        self.fd: int = self._manager.get_fd()
        os.set_inheritable(self.fd, False)
        os.set_blocking(self.fd, False)

    def add(self, directory: str, mask: int) -> int:
        """Watch a directory; a second call for the same one replaces its mask and returns the same descriptor.

        Raises:
            OSError: With the reason in ``errno``, as inotify_add_watch(2) has it.
        """
        try:
            directory.encode(_ENCODING)
        except UnicodeEncodeError:
            # pyinotify encodes strictly: a name that is not text in this encoding is reached through a descriptor.
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
        """End a watch; one that the kernel has ended already is no error."""
        try:
            self._manager.rm_watch(wd, quiet=False)
        except pyinotify.WatchManagerError:
            self.forget(wd)

    def forget(self, wd: int) -> None:
        """Forget a watch that the kernel has ended by itself."""
        if self._manager.get_watch(wd) is not None:
            self._manager.del_watch(wd)

    def read(self) -> list[bytes]:
        """Return what waits in the kernel's queue now, as raw buffers; never blocks."""
        size = array.array("i", [0])
        fcntl.ioctl(self.fd, termios.FIONREAD, size)
        left = size[0]
        buffers = []
        while left > 0:
            try:
                buffer = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                break
            buffers.append(buffer)
            left -= len(buffer)
        return buffers

    def close(self) -> None:
        """Give the instance back, and all its watches with it."""
        self._manager.close()


def events(buffer: bytes) -> Iterator[tuple[int, int, str]]:
    """Take a raw buffer apart into (watch descriptor, mask, name); the name is decoded as ``os.fsdecode`` does."""
    unpack, header = _HEADER.unpack_from, _HEADER.size
    at, end = 0, len(buffer)
    while at < end:
        wd, mask, _, length = unpack(buffer, at)
        at += header
        yield wd, mask, buffer[at : at + length].rstrip(b"\0").decode(_ENCODING, _ERRORS)
        at += length


class EventQueue:
    """Takes events out of the kernel as they come, into a bounded store, on a thread that does nothing else.

    One other thread calls ``take`` (which waits) and ``pump``. Without an instance it only waits.
    """

    def __init__(self, kernel: Inotify | None, name: str, limit: int = MAX_QUEUED_BYTES) -> None:
        self._kernel = kernel
        self._limit = limit
        self._arrived = threading.Condition()
        self._buffers: list[bytes] = []
        self._bytes = 0
        self._lost = False
        self._stopped = False
        self._wake = -1
        self._thread: threading.Thread | None = None
        if kernel is not None:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            self._thread = threading.Thread(target=self._run, args=(kernel,), name=f"{name}-events", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        if self._thread is not None:
            self._thread.start()

    def take(self, timeout: float) -> tuple[list[bytes], bool]:
        """Return the raw buffers that wait, and whether events were lost before them; wait for some if there are none.

        Returns nothing after ``timeout`` seconds, or when the queue is stopped.
        """
        with self._arrived:
            if timeout > 0 and not (self._buffers or self._lost or self._stopped):
                self._arrived.wait(timeout)
            taken = self._buffers, self._lost
            self._buffers, self._bytes, self._lost = [], 0, False
            return taken

    def drain(self) -> None:
        """See to it that every event that has happened until now can be taken."""
        if self._kernel is not None:
            self._fetch(self._kernel)

    def mark_lost(self) -> None:
        """Let the next ``take`` say that events were lost."""
        with self._arrived:
            self._lost = True
            self._arrived.notify_all()

    def wake(self) -> None:
        """Let ``take`` wait no more, now and later. Any thread may call this."""
        with self._arrived:
            self._stopped = True
            self._arrived.notify_all()

    def stop(self) -> None:
        """End the thread; called once, by the one that takes."""
        self.wake()
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)

    def _run(self, kernel: Inotify) -> None:
        ready = select.poll()
        ready.register(kernel.fd, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        while not self._stopped:
            ready.poll()
            try:
                self._fetch(kernel)
            except OSError:
                logger.exception("Cannot read file events, trying again")
                self.mark_lost()
                time.sleep(READ_RETRY_DELAY)

    def _fetch(self, kernel: Inotify) -> None:
        with self._arrived:
            buffers = kernel.read()
            if not buffers:
                return
            self._bytes += sum(map(len, buffers))
            if self._bytes > self._limit:
                self._buffers, self._bytes, self._lost = [], 0, True
            else:
                self._buffers += buffers
            self._arrived.notify()

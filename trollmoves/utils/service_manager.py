"""Reports of a service to systemd, as sd_notify(3): readiness, status, watchdog; and whether its log is the journal.

Without systemd, that is without its environment variables, every function does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from trollmoves.utils.watched_threads import WatchedThread, stack_of, stuck_threads

logger = logging.getLogger(__name__)

STATUS_INTERVAL = 15.0  # s between two status lines without a watchdog
REPORTS_PER_TIMEOUT = 4  # reports in the time after which the watchdog restarts a silent service
MAX_STATUS = 500  # characters


class ServiceManager:
    """Reports the state of this process to the service manager that started it. Any thread."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        pid = os.environ.get("WATCHDOG_PID", "")
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        is_meant = pid in ("", str(os.getpid())) and microseconds.isascii() and microseconds.isdigit()
        self.watchdog_timeout = int(microseconds) / 1e6 if is_meant else 0.0
        """Seconds without a report after which the service manager restarts this process; 0 for never."""

    @property
    def is_present(self) -> bool:
        """True if a service manager expects reports."""
        return bool(self._address)

    def notify(self, **values: object) -> None:
        """Report values, such as ``READY=1``; each is one line. Never blocks, never raises."""
        if not self._address:
            return
        text = "\n".join(f"{name}={' '.join(str(value).split())[:MAX_STATUS]}" for name, value in values.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(text.encode("utf-8", "backslashreplace"), self._address)

    @property
    def report_interval(self) -> float:
        """Seconds between two reports."""
        return min(self.watchdog_timeout / REPORTS_PER_TIMEOUT or STATUS_INTERVAL, STATUS_INTERVAL)

    @contextmanager
    def working(self, status: str) -> Iterator[None]:
        """Report, until the block ends, that this process works on a long step without a ``Reporter``."""
        ended = threading.Event()

        def report() -> None:
            while not ended.wait(self.report_interval):
                extension = int(2e6 * self.report_interval)  # µs
                self.notify(STATUS=status, WATCHDOG=1, EXTEND_TIMEOUT_USEC=extension)

        if self.is_present:
            threading.Thread(target=report, name="reporter", daemon=True).start()
        try:
            yield
        finally:
            ended.set()


class Reporter:
    """The thread that reports the status, and that the watched threads work.

    A watched thread that is in one round for more than half of the watchdog's timeout is stuck: it is logged with its
    stack, and the reports stop until it continues, so that the service manager restarts the process.
    """

    def __init__(self, manager: ServiceManager, status: Callable[[], str]) -> None:
        self._manager = manager
        self._status = status
        self._stopping = threading.Event()
        self._stuck: set[WatchedThread] = set()  # they are logged
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Report that the service is ready, and start; without a service manager, do nothing."""
        if self._manager.is_present:
            self._manager.notify(READY=1, STATUS=self._status())
            self._thread.start()

    def stop(self, *, is_final: bool) -> None:
        """Stop; if ``is_final``, report that the service stops: the service manager kills it if it does not end."""
        self._stopping.set()
        if is_final:
            self._manager.notify(STOPPING=1, STATUS="stopping")

    def _run(self) -> None:
        timeout = self._manager.watchdog_timeout
        while not self._stopping.wait(self._manager.report_interval):
            if not timeout:
                self._manager.notify(STATUS=self._status())
            elif not self._find_stuck(timeout / 2):
                self._manager.notify(WATCHDOG=1, STATUS=self._status())

    def _find_stuck(self, limit: float) -> bool:
        found = dict(stuck_threads(limit))
        for thread, seconds in found.items():
            if thread not in self._stuck:
                logger.critical(
                    "the thread %s is stuck for %.0f s; the service manager will restart this process; it is in %s",
                    thread.name,
                    seconds,
                    stack_of(thread),
                )
                self._manager.notify(STATUS=f"the thread {thread.name} is stuck")
        for thread in self._stuck - found.keys():
            logger.warning("the thread %s continues", thread.name)
        self._stuck = set(found)
        return bool(found)


def logs_to_journal(descriptor: int) -> bool:
    """Return True if a descriptor is the connection to the journal of systemd that this service was started with."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))

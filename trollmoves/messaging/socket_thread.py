"""The thread that owns a group of ZeroMQ sockets and polls them until it is stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import zmq

from trollmoves.errors import TrollmovesError
from trollmoves.messaging.wakeup import Wakeup
from trollmoves.utils.watched_threads import WatchedThread

logger = logging.getLogger(__name__)

ERROR_DELAY = 0.1  # s after an unexpected error, so that a persistent one does not fill the log
STOP_TIMEOUT = 5.0  # s that ``stop`` waits for the thread


class SocketThread:
    """A thread that polls sockets and a wake-up descriptor.

    ZeroMQ sockets must be used by one thread. After each poll this thread calls ``process`` with the ready sockets.
    An exception of ``process`` is logged, and the loop continues. At the end the thread calls ``close``.

    Args:
        role: The kind of thread, for the log and the name of the thread.
        name: The chain, for the log and the name of the thread.
        poll_timeout: Returns the maximum time to wait for the next event, in ms.
        process: Called with the ready sockets; the list is empty after a wake-up or the timeout.
        close: Closes the sockets.
        is_watched: False if ``process`` may wait for a condition that only an operator can end, such as a full disk.
    """

    def __init__(
        self,
        role: str,
        name: str,
        *,
        poll_timeout: Callable[[], int],
        process: Callable[[list[Any]], None],
        close: Callable[[], None],
        is_watched: bool = True,
    ) -> None:
        self._role = role
        self._name = name
        self._poll_timeout = poll_timeout
        self._process = process
        self._close = close
        self.stopping = threading.Event()
        self.wakeup = Wakeup()
        self.poller = zmq.Poller()
        self.poller.register(self.wakeup.fileno(), zmq.POLLIN)
        self._is_watched = is_watched
        self._thread = WatchedThread(target=self._run, name=f"{role}-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """End the current poll. Any thread may call this, also after the stop."""
        self.wakeup.set()

    def stop(self) -> None:
        """Stop the thread and wait until it has closed its sockets, for at most ``STOP_TIMEOUT`` seconds."""
        self.stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT)
        elif not self._thread.ident:
            self._close_all()

    def _run(self) -> None:
        wakeup_fd = self.wakeup.fileno()
        while not self.stopping.is_set():
            try:
                self._thread.end_round()
                ready = dict(self.poller.poll(self._poll_timeout()))
                if self._is_watched:
                    self._thread.begin_round()
                if ready.pop(wakeup_fd, 0):
                    self.wakeup.clear()
                self._process(list(ready))
            except TrollmovesError as error:
                logger.error("[%s] error in the %s thread, continuing: %s", self._name, self._role, error)
                self.stopping.wait(ERROR_DELAY)
            except Exception:
                logger.exception("[%s] unexpected error in the %s thread, continuing", self._name, self._role)
                self.stopping.wait(ERROR_DELAY)
        self._thread.end_round()
        self._close_all()

    def _close_all(self) -> None:
        self._close()
        self.wakeup.close()

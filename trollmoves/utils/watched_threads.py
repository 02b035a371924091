"""Threads that must never block for long: how they start others, and how to find one that blocks."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator

START_TIMEOUT = 10.0  # s in which a new thread must begin


class _Begun(threading.Event):
    """Set by a new thread; the wait for it ends with RuntimeError after START_TIMEOUT."""

    def wait(self, timeout: float | None = None) -> bool:
        if not super().wait(START_TIMEOUT if timeout is None else timeout):
            raise RuntimeError("the new thread has no memory to begin")
        return True


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; raise RuntimeError if it cannot begin.

    If there is memory for a new thread but not for its first call, ``Thread.start`` of CPython waits without end.
    """
    thread._started = _Begun()  # type: ignore[attr-defined]
    thread.start()


class WatchedThread(threading.Thread):
    """A thread that works in short rounds and waits between them: transfers and foreign disks are for other threads."""

    busy_since: float | None = None
    """The monotonic time of the start of the current round; None while the thread waits."""

    def begin_round(self) -> None:
        """Record that the thread begins to work. On this thread."""
        self.busy_since = time.monotonic()

    def end_round(self) -> None:
        """Record that the thread waits. On this thread."""
        self.busy_since = None


def stuck_threads(limit: float) -> Iterator[tuple[WatchedThread, float]]:
    """Yield each watched thread of this process that is in one round for more than ``limit`` seconds, and the time."""
    now = time.monotonic()
    for thread in threading.enumerate():
        if isinstance(thread, WatchedThread):
            since = thread.busy_since
            if since is not None and now - since > limit:
                yield thread, now - since


def stack_of(thread: threading.Thread) -> str:
    """Return the functions that a thread is executing, on one line, the innermost last."""
    frame = sys._current_frames().get(thread.ident or 0)
    frames = traceback.extract_stack(frame) if frame else []
    return " > ".join(f"{one.name} ({os.path.basename(one.filename)}:{one.lineno})" for one in frames)

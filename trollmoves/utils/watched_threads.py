"""Threads that must never block for long, and how to find one that does."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator


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

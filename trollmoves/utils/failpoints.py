"""Failpoints: kill the process, or block a thread, at a named point (tests of recovery only).

A failpoint does nothing unless a test entry point calls ``arm`` before it runs the daemon.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable


def _do_nothing(name: str) -> None:
    """Continue: no failpoint is armed."""


hit: Callable[[str], None] = _do_nothing
"""Mark that the process has reached a failpoint; any thread. An armed failpoint does not return."""


def arm(name: str, count: int = 1) -> None:
    """Make the process send itself SIGKILL when it reaches the failpoint ``name`` for the ``count``-th time."""
    global hit
    times = itertools.count(1)

    def kill(reached: str) -> None:
        if reached == name and next(times) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    hit = kill


def arm_block(name: str) -> None:
    """Make each thread that reaches the failpoint ``name`` wait without end."""
    global hit

    def block(reached: str) -> None:
        if reached == name:
            threading.Event().wait()

    hit = block

"""How the kernel schedules the threads of this process: as a batch while there is much to do, else as usual.

In a batch (``SCHED_BATCH``, sched(7)) a thread that is woken does not interrupt one that works: fewer switches, more
files a second. On processors that are busy with other programs' work it would also wait for a turn each time that it is
woken, and a single file passes through a dozen threads; so a daemon that has little to do does without.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

HOLD_SECONDS = 0.5  # s after the last time that things came fast


class CpuPolicy:
    """The policy of all threads of this process; what an operator started it with stays. For one thread at a time."""

    def __init__(self) -> None:
        self._is_ours = os.sched_getscheduler(0) == os.SCHED_OTHER
        self._batch = False
        self._until = 0.0  # monotonic

    def update(self, fast: bool) -> float:
        """Hear whether things come fast; give the seconds after which to say so again."""
        now = time.monotonic()
        if fast:
            self._until = now + HOLD_SECONDS
        batch = now < self._until
        if batch != self._batch and self._is_ours:
            self._batch = batch
            _set_all_threads(os.SCHED_BATCH if batch else os.SCHED_OTHER)
        return self._until - now if batch else float("inf")


def _set_all_threads(policy: int) -> None:
    done = set[str]()
    with suppress(OSError):  # no list of threads is to be had
        while new := set(os.listdir("/proc/self/task")) - done:  # who starts meanwhile may follow one not yet reached
            done |= new
            for thread in new:
                with suppress(OSError):  # it has ended meanwhile, or it may not be
                    os.sched_setscheduler(int(thread), policy, os.sched_param(0))

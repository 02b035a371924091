"""Keeps threads that wait for each other on one processor.

Python lets one of them run at a time, wherever they are. On several processors each hand-over wakes another processor
first, which takes longer than most of what the threads do; on one it is a matter of who goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def pinned_to_one_cpu() -> Iterator[None]:
    """Have the calling thread, and those it starts, run on the processor that all blocks of this process share.

    The threads it started stay there afterwards. Where this cannot be had, nothing is changed.
    """
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {sorted(before)[os.getpid() % len(before)]})
    except (AttributeError, OSError):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)
